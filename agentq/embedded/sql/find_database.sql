-- One row when the database is there.
select 1 from pg_database where datname = 'agentq';
