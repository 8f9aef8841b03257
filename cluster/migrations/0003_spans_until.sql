-- Spans that have ended since an instant, and missed ranges that reach beyond one, are looked for again and again.

CREATE INDEX project_spans_until ON project_spans (until) WHERE until IS NOT NULL;

DROP INDEX missed_polls_last_tick;
CREATE INDEX missed_polls_last_tick ON missed_polls (last_tick);
