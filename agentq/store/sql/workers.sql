-- Worker processes: one row each, renewed for all of its steps at once.

-- name: register
insert into agentq.worker (worker_id, lock_key, host, pid, place, worker_group, role, release, serves, slots, lease_until)
values (%(worker)s, %(lock_key)s, %(host)s, %(pid)s, %(place)s, %(group)s, %(role)s, %(release)s, %(serves)s, %(slots)s,
        agentq.now() + make_interval(secs => %(lease_s)s))
on conflict (worker_id) do nothing;  -- the answer to an earlier try was lost

-- name: hold_lock
-- Held by this connection until the process dies, which tells the relay faster than the lease does.
-- Never waited for: after a network fault Postgres may keep the former connection, and the lock with it.
select pg_try_advisory_lock(%(lock_key)s);

-- name: beat
-- No row: this process was taken for dead, and must register anew before it claims again.
update agentq.worker
   set seen_at = agentq.now(), lease_until = agentq.now() + make_interval(secs => %(lease_s)s),
       delivered_at = coalesce(agentq.now() - make_interval(secs => %(idle_s)s::double precision), delivered_at),
       watchdog_restarts = %(restarts)s,
       restarted_at = coalesce(agentq.now() - make_interval(secs => %(restarted_s)s::double precision), restarted_at)
 where worker_id = %(worker)s and state in ('live', 'draining')
returning state;

-- name: to_stop
-- Which of the steps that this process works on must stop: their claim was taken away (a kill, a replay),
-- or their session has ended under them.
select mine.step_id, case when e.fence_token is distinct from mine.token then 'fenced' else 'cancelled' end
  from unnest(%(tenants)s::text[], %(sessions)s::uuid[], %(steps)s::uuid[], %(tokens)s::bigint[])
       as mine (tenant, session_id, step_id, token)
  left join agentq.session s on s.tenant = mine.tenant and s.session_id = mine.session_id
  left join agentq.ledger_entry e on e.tenant = mine.tenant and e.session_id = mine.session_id
                                 and e.step_id = mine.step_id
 where e.fence_token is distinct from mine.token or s.state not in ('running', 'paused');

-- name: claimed
-- What a process holds by the ledger, claims of the last seconds left out: they may not have arrived yet.
select tenant, session_id, step_id, fence_token from agentq.ledger_entry
 where state = 'running' and worker = %(worker)s
   and started_at <= agentq.now() - make_interval(secs => %(age_s)s);

-- name: of_pids
-- The worker rows of other processes on this host.
select worker_id from agentq.worker
 where host = %(host)s and pid = any (%(pids)s::int[]) and state in ('live', 'draining');

-- name: drain
update agentq.worker set state = 'draining' where worker_id = %(worker)s and state = 'live';

-- name: stop
update agentq.worker set state = 'stopped', stopped_at = agentq.now()
 where worker_id = %(worker)s and state in ('live', 'draining');

-- name: look_for_dead
select agentq.look_for_dead(%(lease_s)s::double precision, %(look_s)s::double precision);

-- name: of_place
-- The worker rows of all processes whose pids mean the same as one's own.
select worker_id, pid from agentq.worker where place = %(place)s and state in ('live', 'draining');

-- name: look_at_ended
select agentq.look_at_ended(%(workers)s::uuid[], %(told_s)s::double precision[], %(lease_s)s::double precision);

-- name: forget
-- Rows of processes that ended a day ago and own nothing.
delete from agentq.worker w
 where w.state in ('dead', 'stopped') and w.stopped_at < agentq.now() - interval '1 day'
   and not exists (select from agentq.ledger_entry e where e.state = 'running' and e.worker = w.worker_id);

-- name: present
select worker_id, host, pid, worker_group, role, release, serves, state,
       extract(epoch from agentq.now() - seen_at)::double precision, started_at, delivered_at, watchdog_restarts
  from agentq.worker where state in ('live', 'draining') order by worker_group, started_at;

-- name: restarted
-- Processes that restarted their own consumer in the last day, the latest first. One that was taken for dead
-- and registered anew has two rows.
select host, pid, max(watchdog_restarts), extract(epoch from agentq.now() - max(restarted_at))::double precision as ago
  from agentq.worker where restarted_at > agentq.now() - interval '1 day' group by host, pid order by ago;

-- name: unserved
-- Due steps that no live worker could take, by what it would have to serve.
with due as (
    select s.agent || '@' || s.agent_version as pin,
           case when e.quarantine then 'quarantine' else t.worker_group end as served_by,
           count(*) as steps, min(e.due_at) as oldest
      from agentq.ledger_entry e
      join agentq.session s on s.tenant = e.tenant and s.session_id = e.session_id and s.state = 'running'
      join agentq.tenant t on t.name = e.tenant and t.state <> 'paused'
     where e.due_at <= agentq.now() and (e.state in ('ready', 'queued') or e.unserved is not null)
     group by 1, 2)
select pin, served_by, steps,
       extract(epoch from agentq.now() - oldest)::double precision
  from due
 where not exists (select from agentq.worker w
                    where w.state = 'live' and w.role = 'steps' and due.pin = any (w.serves)
                      and w.worker_group in (due.served_by, '*'))
 order by steps desc, pin;

-- name: tenants_served
select count(*) from agentq.tenant where state <> 'paused';
