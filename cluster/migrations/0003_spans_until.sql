-- Spans that have ended since an instant, and missed ranges that reach beyond one, are looked for again and again.

-- The condition is that of the query.  Without it, the planner would also take the index for the last span of a single
-- project (max(until) in the trigger on projects), and read the ends of all others.
CREATE INDEX project_spans_until ON project_spans (until) WHERE until > since;

DROP INDEX missed_polls_last_tick;
CREATE INDEX missed_polls_last_tick ON missed_polls (last_tick);
