-- Tenants, the record of what operators did, and submissions that were refused.

-- name: add_tenant
insert into agentq.tenant (name, concurrency, weight) values (%(name)s, %(concurrency)s, %(weight)s)
on conflict (name) do nothing
returning name;

-- name: change_tenant
-- A lowered cap sheds: slots are not handed on until admission finds the tenant below it again.
update agentq.tenant
   set concurrency = coalesce(%(concurrency)s, concurrency), weight = coalesce(%(weight)s, weight),
       state = coalesce(%(state)s, state), preapproved = coalesce(%(preapproved)s::text[], preapproved),
       agents = case when %(agents)s::text[] is null then agents else nullif(%(agents)s::text[], '{}') end,
       tools = case when %(tools)s::text[] is null then tools else nullif(%(tools)s::text[], '{}') end,
       retention_days = case when %(retention_days)s::int is null then retention_days
                             else nullif(%(retention_days)s::int, 0) end,
       memory_days = case when %(memory_days)s::int is null then memory_days else nullif(%(memory_days)s::int, -1) end,
       trace_content = case when %(trace_content)s::text is null then trace_content
                            else nullif(%(trace_content)s::text, 'fleet') end,
       changed_at = agentq.now(),
       shedding = shedding or coalesce(%(concurrency)s, concurrency) < concurrency
 where name = %(name)s
returning name;

-- name: tenants
-- By name, from one on; `match` is a part of the name.
select name, state, concurrency, weight, created_at, preapproved, agents, tools, retention_days, memory_days, trace_content,
       worker_group, placement, case when placed_at is not null then agentq.queue_of(name, worker_group, shard) end
  from agentq.tenant
 where name > %(after)s::text
   and (%(match)s::text is null or strpos(name, %(match)s::text) > 0)
   and (%(state)s::text is null or state = %(state)s::text)
 order by name limit %(limit)s;

-- name: tenant
select name, state, concurrency, weight, created_at, preapproved, agents, tools, retention_days, memory_days, trace_content,
       worker_group, placement, case when placed_at is not null then agentq.queue_of(name, worker_group, shard) end
  from agentq.tenant where name = %(name)s;

-- name: known
select name from agentq.tenant where name = any (%(names)s::text[]);

-- name: is_tenant
select exists (select from agentq.tenant where name = %(name)s);

-- name: remove_expired
select * from agentq.remove_expired_of(%(after)s, %(tenants)s::int, %(again)s::text[], %(max)s::int);

-- name: to_erase
-- For update: starts that have passed the door refer to this row, and are waited for.
select t.state, (select count(*) from agentq.ledger_entry e where e.tenant = t.name and e.state = 'running')
  from agentq.tenant t where t.name = %(name)s for update;

-- name: close_tenant
-- Its queues are the relay's to remove from here on, whether the broker answers whoever erases it or not.
update agentq.tenant
   set agents = '{}', changed_at = agentq.now(),
       former_queues = array(select distinct q from unnest(former_queues || array[own.queue, own.queue || '.dead']) as q)
  from (select agentq.queue_of(%(name)s, 'default', null)) as own (queue)
 where name = %(name)s
returning own.queue, own.queue || '.dead';

-- name: remove_all
select agentq.remove_sessions(%(tenant)s, 'infinity', %(max)s::int, true);

-- name: left
-- What is left of a tenant that was erased: its rows by table, for the proof.
select (select count(*) from agentq.session where tenant = %(tenant)s),
       (select count(*) from agentq.checkpoint where tenant = %(tenant)s),
       (select count(*) from agentq.message where tenant = %(tenant)s),
       (select count(*) from agentq.effect where tenant = %(tenant)s),
       (select count(*) from agentq.trace where tenant = %(tenant)s),
       (select count(*) from agentq.dead_letter where tenant = %(tenant)s),
       (select count(*) from agentq.reservation where tenant = %(tenant)s),
       (select count(*) from agentq.memory where tenant = %(tenant)s),
       (select count(*) from agentq.ledger_entry where tenant = %(tenant)s),
       (select count(*) from agentq.branch where tenant = %(tenant)s),
       (select count(*) from agentq.session_event where tenant = %(tenant)s),
       (select count(*) from agentq.decision where tenant = %(tenant)s),
       (select count(*) from agentq.approval where tenant = %(tenant)s),
       (select count(*) from agentq.notice where tenant = %(tenant)s),
       (select count(*) from agentq.poison_message where tenant = %(tenant)s),
       (select count(*) from agentq.refused_submission where tenant = %(tenant)s),
       (select count(*) from agentq.anomaly where tenant = %(tenant)s),
       (select count(*) from agentq.session_tally where tenant = %(tenant)s),
       (select count(*) from agentq.spend_session where tenant = %(tenant)s),
       (select count(*) from agentq.tenant_key where tenant = %(tenant)s and wrapped is not null);

-- name: forget_refused
-- What never became a session, and may hold what its people wrote.
with poison as (delete from agentq.poison_message where tenant = %(tenant)s)
delete from agentq.refused_submission where tenant = %(tenant)s;

-- name: restricted
-- Few tenants are: workers read them all every few seconds.
select name, agents, tools from agentq.tenant where agents is not null or tools is not null;

-- name: actions
select action_id, at, operator, tenant, action, target, reason, detail from agentq.operator_action
 where (%(tenant)s::text is null or tenant = %(tenant)s)
   and (%(operator)s::text is null or operator = %(operator)s)
   and (%(action)s::text is null or action = %(action)s or action like %(action)s || ' %%')
 order by action_id desc limit %(limit)s;

-- name: record_action
insert into agentq.operator_action (operator, tenant, action, target, reason, detail)
values (%(operator)s, %(tenant)s, %(action)s, %(target)s, %(reason)s, %(detail)s);

-- name: refuse_submission
insert into agentq.refused_submission (tenant, reason, body) values (%(tenant)s, %(reason)s, %(body)s)
returning submission_id;

-- name: refused_submissions
select submission_id, at, tenant, reason, body from agentq.refused_submission order by submission_id desc limit %(limit)s;
