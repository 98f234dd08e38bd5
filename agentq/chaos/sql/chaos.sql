-- What the nemesis does inside Postgres, as the fleet's own role.

-- name: uptime
-- How long Postgres has been up. Right after its start a missing liveness lock says nothing about a worker.
select extract(epoch from clock_timestamp() - pg_postmaster_start_time())::double precision;

-- name: end_backends
-- Ends a share of the fleet's own connections, other than ours; how many.
select count(*) filter (where pg_terminate_backend(pid))::int
  from pg_stat_activity
 where usename = current_user and pid <> pg_backend_pid() and backend_type = 'client backend'
   and application_name <> %(ours)s
   and (hashtext(pid::text || %(seed)s::text) & 255) < 256 * %(share)s::double precision;
