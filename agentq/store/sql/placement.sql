-- Placement: which queue carries a tenant's steps. What each function does stands with it.

-- name: place
select p.name, p.queue from agentq.place(%(names)s::text[], %(own_max)s::int, %(shards)s::int, %(max)s::int) p;

-- name: change
select agentq.change_placement(%(name)s, %(placement)s::text, %(group)s::text, %(own_max)s::int, %(shards)s::int);

-- name: queues_of
-- Of these tenants, and of those that have moved of late, so that who publishes keeps what it knows of the others.
-- Null: it has not been placed yet.
select t.name, case when t.placed_at is not null then agentq.queue_of(t.name, t.worker_group, t.shard) end
  from agentq.tenant t where t.name = any (%(names)s::text[])
union
select t.name, agentq.queue_of(t.name, t.worker_group, t.shard) from agentq.tenant t
 where t.former_queues <> '{}' and t.placed_at > (select agentq.now()) - make_interval(secs => %(lately_s)s);

-- name: followed
-- The queues that workers of a group listen to: its tenants' own, its shards, and for some seconds the own queues
-- that tenants of it have left, where messages may still wait. By hops through the index from shard to shard,
-- so that their tenants are not counted through.
with recursive hop as (
    (select t.shard from agentq.tenant t where t.worker_group = %(group)s and t.shard is not null order by t.shard limit 1)
    union all
    select (select t.shard from agentq.tenant t
             where t.worker_group = %(group)s and t.shard is not null and t.shard > hop.shard order by t.shard limit 1)
      from hop where hop.shard is not null)
select agentq.queue_of('', %(group)s, hop.shard) from hop where hop.shard is not null
union all
select agentq.queue_of(t.name, t.worker_group, null) from agentq.tenant t
 where t.worker_group = %(group)s and t.shard is null and t.placed_at is not null and t.state <> 'paused'
union all
select agentq.queue_of(t.name, t.worker_group, null) from agentq.tenant t
 where t.former_queues <> '{}' and t.worker_group = %(group)s and t.state <> 'paused' and t.shard is not null
   and t.placed_at > (select agentq.now()) - make_interval(secs => %(linger_s)s)
   and agentq.queue_of(t.name, t.worker_group, null) = any (t.former_queues);

-- name: left_behind
-- Queues that tenants left long enough ago, and whether somebody uses them now. One that was erased uses none of its
-- own until it is let in again.
select t.name, q.queue,
       q.queue in (agentq.queue_of(t.name, t.worker_group, t.shard),
                   agentq.queue_of(t.name, t.worker_group, null) || '.dead')
       and not (t.state = 'paused' and t.agents is not distinct from '{}')
       or exists (select from agentq.shard_queue(q.queue) s
                    join agentq.tenant o on o.worker_group = s.worker_group and o.shard = s.shard)
  from agentq.tenant t, unnest(t.former_queues) as q (queue)
 where t.former_queues <> '{}' and t.placed_at < (select agentq.now()) - make_interval(secs => %(age_s)s)
 limit 100;

-- name: forget
update agentq.tenant set former_queues = array_remove(former_queues, %(queue)s) where name = %(name)s;

-- name: is_served
select exists (select from agentq.worker where state = 'live' and role = 'steps' and worker_group in (%(group)s, '*'));

-- name: deserted
-- Groups that tenants are placed in and no live worker serves, with one of their tenants and the steps that wait.
-- Only the tenants of these groups are counted.
select g.name, t.tenants, t.first,
       (select count(*) from agentq.ledger_entry e join agentq.tenant o on o.name = e.tenant
         where o.worker_group = g.name and e.state in ('ready', 'queued') and e.due_at <= agentq.now()
           and not e.quarantine)
  from (select w.name from agentq.worker_groups() as w (name)
         where not exists (select from agentq.worker p where p.state = 'live' and p.role = 'steps'
                              and p.worker_group in (w.name, '*')) offset 0) g
 cross join lateral (
       select count(*) as tenants, min(o.name) as first from agentq.tenant o
        where o.worker_group = g.name and o.state <> 'paused') t
 where t.tenants > 0
 order by g.name;
