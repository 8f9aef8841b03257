-- Lists of projects in the order of their names, a page at a time, and lookups by name.

CREATE INDEX projects_name_id ON projects (name, id);
DROP INDEX projects_name;
