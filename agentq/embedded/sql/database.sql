-- Run by the superuser inside the database, once. Nobody but our two roles has business here.
revoke all on database agentq from public;
grant connect on database agentq to agentq_fleet;

-- pgvector asks for a superuser, so it cannot wait for the migration that first uses it.
create extension if not exists vector;
