-- The ledger's calls from Python. What each does, and why, stands with its function.

-- name: claim
select * from agentq.claim(%(tenant)s, %(session)s, %(step)s, %(worker)s, %(token)s::bigint, %(serves)s::text[],
                           %(quarantine)s);

-- name: settle
select * from agentq.settle(%(tenant)s, %(session)s, %(step)s, %(fence)s::int, %(token)s::bigint, %(closing)s,
    %(delay_s)s::double precision, %(kind)s, %(state)s, %(parent)s, %(state_from)s, %(version)s::int, %(result)s,
    %(failure)s, %(next)s, %(next_name)s, %(next_attempts)s::int, %(next_timeout_s)s::real, %(next_args)s, %(plan)s, %(traced_by)s);

-- name: charge_late
select agentq.settle_charges(%(tenant)s, %(session)s, %(step)s, %(fence)s::int, %(charges)s, 'late');

-- name: disown
select * from agentq.disown(%(tenant)s, %(session)s, %(step)s, %(token)s::bigint);

-- name: admit
select agentq.admit(%(tenant)s, %(max)s::int);

-- name: admit_each
select tenant, wake from agentq.admit_each(%(tenants)s, %(max)s::int);

-- name: refill
select agentq.refill_slot(%(tenant)s);

-- name: backlogged
-- Who has a backlog, and whether admission has anything to do there: a step that is due and room for it, one that
-- has waited so long that its priority no longer counts, or a tenant that may end its shedding. Timers alone, and
-- a tenant that holds all it may, cost no round trip of their own.
-- The time is a value of its own: a volatile function's is compared with row after row, not looked up in an index.
with admitted as materialized (
    select tenant, count(*) as steps from agentq.ledger_entry where state in ('queued', 'running') group by tenant)
select b.tenant,
       t.shedding and has.few
       or has.room and exists (
           select from generate_series(0, 9) priority (n)
            where exists (select from agentq.ledger_entry e
                           where e.tenant = b.tenant and e.state = 'ready' and e.priority = priority.n
                             and e.due_at <= (select agentq.now())))
       or exists (select from agentq.ledger_entry e
                   where e.tenant = b.tenant and e.state = 'ready' and e.priority > 0) and exists (
           select from generate_series(1, 9) priority (n)
            where exists (select from agentq.ledger_entry e
                           where e.tenant = b.tenant and e.state = 'ready' and e.priority = priority.n
                             and e.due_at <= (select agentq.now()) - interval '30 s' * priority.n))
  from agentq.backlogged() as b (tenant)
  join agentq.tenant t on t.name = b.tenant and t.state <> 'paused'
  left join admitted a on a.tenant = b.tenant
 cross join lateral (
       select least(t.concurrency, case when t.shared_at > agentq.now() - interval '5 s' then t.allowance end) as steps) may
 cross join lateral (
       select coalesce(a.steps, 0) < may.steps as room, coalesce(a.steps, 0) <= may.steps as few) has;

-- name: broker_should_hold
-- What the ledger believes is in each queue, and how much of it is old enough to be missed.
-- The age doubles with each repeat, so a message that nobody consumes is not repeated for ever. What was queued
-- before its tenant moved is in the queue that it left: it is missed at once.
select case when e.quarantine then 'agentq.quarantine' else agentq.queue_of(t.name, t.worker_group, t.shard) end,
       array_agg(distinct e.tenant), count(*),
       count(*) filter (where e.queued_at < agentq.now() - make_interval(secs => %(age_s)s * 2 ^ least(e.dispatches, 6))
                           or t.former_queues <> '{}' and not e.quarantine and e.queued_at < t.placed_at)
  from agentq.ledger_entry e join agentq.tenant t on t.name = e.tenant
 where e.state = 'queued'
 group by 1;

-- name: republish
-- Mark missing messages as sent again and return them. Materialized for the reason that `admit` gives.
with old as materialized (
    select l.tenant, l.session_id, l.step_id from agentq.ledger_entry l join agentq.tenant t on t.name = l.tenant
     where l.state = 'queued' and l.tenant = any (%(tenants)s::text[]) and l.quarantine = %(quarantine)s
       and (l.queued_at < agentq.now() - make_interval(secs => %(age_s)s * 2 ^ least(l.dispatches, 6))
            or t.former_queues <> '{}' and not l.quarantine and l.queued_at < t.placed_at)
     order by l.queued_at limit %(max)s for update of l skip locked)
update agentq.ledger_entry e
   set queued_at = agentq.now(), dispatches = least(e.dispatches + 1, 1000)
  from old where e.tenant = old.tenant and e.session_id = old.session_id and e.step_id = old.step_id
returning e.tenant, agentq.wake(e.session_id, e.step_id, e.name, e.quarantine, e.fence);

-- name: take_back
select * from agentq.take_back(%(max)s::int);

-- name: pass_turns
select agentq.pass_turns(%(max)s::int);

-- name: expire_sessions
select * from agentq.expire_sessions(%(max)s::int);

-- name: branch_results
-- What each branch of a join came to, in the order in which they were spawned.
select branch, state, result, failure, child_session from agentq.branch
 where tenant = %(tenant)s and session_id = %(session)s and join_step = %(step)s
 order by branch;

-- name: messages
-- Without those of steps that a replay has replaced.
select seq, body, written_by, step_id from agentq.message
 where tenant = %(tenant)s and session_id = %(session)s
   and step_id not in (select step_id from agentq.ledger_entry
                        where tenant = %(tenant)s and session_id = %(session)s and superseded is not null)
 order by seq;

-- name: add_event
insert into agentq.session_event (tenant, session_id, step_id, kind, body)
values (%(tenant)s, %(session)s, %(step)s, %(kind)s, %(body)s);

-- name: queue_depths
-- For people: a tenant's backlog and work, and how long its oldest due step has waited.
select t.name, t.state, t.concurrency, coalesce(w.ready, 0), coalesce(w.queued, 0), coalesce(w.running, 0), w.oldest_due_s,
       t.worker_group, agentq.queue_of(t.name, t.worker_group, t.shard)
  from agentq.tenant t left join agentq.work(%(tenant)s::text) w on w.tenant = t.name
 where t.name = %(tenant)s::text;

-- name: busy_depths
-- Those that have work, whoever waits longest first.
select t.name, t.state, t.concurrency, w.ready, w.queued, w.running, w.oldest_due_s, t.worker_group,
       agentq.queue_of(t.name, t.worker_group, t.shard)
  from agentq.work(null) w join agentq.tenant t on t.name = w.tenant
 where (%(match)s::text is null or strpos(t.name, %(match)s::text) > 0)
   and (%(state)s::text is null or t.state = %(state)s::text)
 order by w.oldest_due_s desc nulls last, w.ready + w.queued + w.running desc, t.name
 limit %(limit)s offset %(offset)s;

-- name: idle_depths
-- Those that have none, by name. `offset 0`: looked up for each tenant of the page, not joined with the whole backlog.
select t.name, t.state, t.concurrency, 0, 0, 0, null::double precision, t.worker_group,
       agentq.queue_of(t.name, t.worker_group, t.shard)
  from agentq.tenant t
 where t.name > %(after)s::text
   and (%(match)s::text is null or strpos(t.name, %(match)s::text) > 0)
   and (%(state)s::text is null or t.state = %(state)s::text)
   and not exists (select from agentq.ledger_entry e where e.tenant = t.name and e.state = 'ready' offset 0)
   and not exists (select from agentq.ledger_entry e where e.tenant = t.name and e.state = 'queued' offset 0)
   and not exists (select from agentq.ledger_entry e where e.tenant = t.name and e.state = 'running' offset 0)
 order by t.name limit %(limit)s;

-- name: busiest
-- The tenants with most to do, and after them, where there are not so many, others by name.
with busy as materialized (
    select t.name, t.concurrency, w.ready, w.queued, w.running, coalesce(w.oldest_due_s, 0) as oldest_due_s,
           row_number() over (order by w.ready + w.queued + w.running desc, t.name) as place
      from agentq.work(null) w join agentq.tenant t on t.name = w.tenant),
shown as (
    select name, concurrency, ready, queued, running, oldest_due_s from busy where place <= %(top)s
    union all
    (select t.name, t.concurrency, 0, 0, 0, 0 from agentq.tenant t
      where not exists (select from busy where busy.name = t.name) order by t.name
      limit greatest(%(top)s - (select count(*) from busy), 0)))
select name, concurrency, ready, queued, running, oldest_due_s from shown
union all
-- The rest of those that have work, together.
select null, sum(concurrency)::bigint, sum(ready)::bigint, sum(queued)::bigint, sum(running)::bigint, max(oldest_due_s)
  from busy where place > %(top)s having count(*) > 0;

-- name: offer_served
-- Steps that waited for a worker of their version, now that one lives. Mostly none wait: they are found first, or a
-- plan made for a young database would join all sessions with all steps to see that.
with waiting as materialized (
    select tenant, session_id, step_id from agentq.ledger_entry where unserved is not null)
update agentq.ledger_entry e
   set state = case s.state when 'paused' then 'held' else 'ready' end, unserved = null
  from waiting w, agentq.session s, agentq.tenant t
 where e.tenant = w.tenant and e.session_id = w.session_id and e.step_id = w.step_id
   and e.unserved is not null and s.tenant = e.tenant and s.session_id = e.session_id and t.name = e.tenant
   and exists (select from agentq.worker w
                where w.state = 'live' and w.role = 'steps' and e.unserved = any (w.serves)
                  and (e.quarantine or w.worker_group in (t.worker_group, '*')))
returning e.step_id;

-- name: unclaimed
-- Steps that should have come to a worker which serves these agents, from these queues, and did not.
select agentq.queue_of(t.name, t.worker_group, t.shard), e.session_id, e.step_id, e.fence, e.dispatches
  from agentq.ledger_entry e
  join agentq.session s on s.tenant = e.tenant and s.session_id = e.session_id and s.state = 'running'
  join agentq.tenant t on t.name = e.tenant and t.state <> 'paused'
 where e.state = 'queued' and e.due_at <= agentq.now() and e.quarantine = %(quarantine)s
   and (%(quarantine)s or agentq.queue_of(t.name, t.worker_group, t.shard) = any (%(queues)s::text[]))
   and s.agent || '@' || s.agent_version = any (%(serves)s::text[])
 order by e.due_at, e.step_id limit 50;
