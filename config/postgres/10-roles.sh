#!/bin/sh
# Run once by the postgres image, as the superuser, when its data folder is new: the two roles of agentq
# and their database. agentq_owner owns the schema; agentq_fleet is bound by row security.
set -eu
: "${AGENTQ_OWNER_PASSWORD:?}" "${AGENTQ_FLEET_PASSWORD:?}"

# The passwords come through the environment, not as arguments, which `ps` would show.
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres <<'SQL'
\getenv owner_password AGENTQ_OWNER_PASSWORD
\getenv fleet_password AGENTQ_FLEET_PASSWORD
set log_statement = 'none';
set password_encryption = 'scram-sha-256';
create role agentq_owner login nosuperuser nocreatedb nocreaterole nobypassrls noreplication
    password :'owner_password';
create role agentq_fleet login nosuperuser nocreatedb nocreaterole nobypassrls noreplication
    password :'fleet_password';
create database agentq owner agentq_owner;
\connect agentq
revoke all on database agentq from public;
grant connect on database agentq to agentq_fleet;
-- Where the image brings pgvector, it needs a superuser to come in.
select exists (select from pg_available_extensions where name = 'vector') as has_vector \gset
\if :has_vector
create extension if not exists vector;
\endif
SQL
