"""A registered version as files for other serving platforms; nothing here talks to one."""
