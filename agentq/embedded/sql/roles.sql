-- Run by the superuser at every start, so that the roles match the passwords that we remember.
-- The passwords arrive as SCRAM verifiers: nothing that can be used to log in reaches a log.
do $$
begin
    if not exists (select from pg_roles where rolname = 'agentq_owner') then
        create role agentq_owner;
    end if;
    if not exists (select from pg_roles where rolname = 'agentq_fleet') then
        create role agentq_fleet;
    end if;
end
$$;

-- Owns the database and its schema, runs the migrations.
alter role agentq_owner login nosuperuser nocreatedb nocreaterole nobypassrls noreplication
    password %(owner_verifier)s;

-- The fleet: row-level security holds for it, and it can change no table.
alter role agentq_fleet login nosuperuser nocreatedb nocreaterole nobypassrls noreplication
    password %(fleet_verifier)s;
