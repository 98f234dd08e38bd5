-- Placement: which queue carries a tenant's steps, and which workers serve it.
-- How functions are written and replaced: see ledger.sql.


-- The queue of a tenant. Each group of workers has shards of its own: a queue that two groups listened to
-- would bring each of them the other's steps.
create or replace function agentq.queue_of(p_tenant text, p_group text, p_shard int) returns text
language sql immutable as $$
    select case when p_shard is null then 'agentq.t.' || p_tenant
                when p_group = 'default' then 'agentq.shard.' || p_shard
                else 'agentq.shard.' || p_group || '.' || p_shard end
$$;


-- The shard of a tenant: the same in every release of Postgres, which its own hashes need not be.
create or replace function agentq.shard_of(p_tenant text, p_shards int) returns int language sql immutable as $$
    select (('x' || left(md5(p_tenant), 8))::bit(32)::bigint % p_shards)::int
$$;


-- The group and the shard that a queue is of; null where it is no shard's.
create or replace function agentq.shard_queue(p_queue text, out worker_group text, out shard int)
language sql immutable as $$
    select case when m is not null then coalesce(m[1], 'default') end, m[2]::int
      from regexp_match(p_queue, '^agentq\.shard\.(?:([^.]+)\.)?(\d+)$') as m
$$;


-- The groups that tenants are placed in, by hops through the index from group to group.
create or replace function agentq.worker_groups() returns setof text language sql stable rows 10 as $$
    with recursive own as (
        (select t.worker_group from agentq.tenant t where t.shard is null order by t.worker_group limit 1)
        union all
        select (select t.worker_group from agentq.tenant t
                 where t.shard is null and t.worker_group > own.worker_group order by t.worker_group limit 1)
          from own where own.worker_group is not null
    ), shared as (
        (select t.worker_group from agentq.tenant t where t.shard is not null order by t.worker_group limit 1)
        union all
        select (select t.worker_group from agentq.tenant t
                 where t.shard is not null and t.worker_group > shared.worker_group order by t.worker_group limit 1)
          from shared where shared.worker_group is not null
    )
    select worker_group from own where worker_group is not null
    union
    select worker_group from shared where worker_group is not null
$$;


-- Place tenants: those named, or those that nobody has placed. `auto` is a queue of its own while the group has
-- fewer than so many, and a shard beyond. What is placed stays where it is until it is placed again: a process
-- with other settings moves nobody.
create or replace function agentq.place(p_names text[], p_own_max int, p_shards int, p_max int)
returns table (name text, queue text) language sql as $$
    with due as materialized (
        select t.name, t.worker_group, t.placement from agentq.tenant t
         where t.name = any (coalesce(p_names, array(
                   select n.name from agentq.tenant n where n.placed_at is null order by n.name limit p_max)))
           and (p_names is not null or t.placed_at is null)
         order by t.name limit p_max for no key update skip locked),
    numbered as (
        select d.*, row_number() over (partition by d.worker_group, d.placement order by d.name) as place from due d),
    owners as (
        select t.worker_group, count(*) as n from agentq.tenant t
         where t.shard is null and t.placed_at is not null and t.worker_group in (select due.worker_group from due)
           and not exists (select from due where due.name = t.name)
         group by t.worker_group),
    placed as (
        select n.name, case when n.placement = 'own' then null
                            when n.placement = 'auto' and coalesce(o.n, 0) + n.place <= p_own_max then null
                            else agentq.shard_of(n.name, p_shards) end as shard
          from numbered n left join owners o on o.worker_group = n.worker_group)
    update agentq.tenant t
       set shard = p.shard,
           former_queues = case
               when t.placed_at is null or agentq.queue_of(t.name, t.worker_group, t.shard)
                                           = agentq.queue_of(t.name, t.worker_group, p.shard) then t.former_queues
               else array_append(array_remove(t.former_queues, agentq.queue_of(t.name, t.worker_group, t.shard)),
                                 agentq.queue_of(t.name, t.worker_group, t.shard)) end,
           placed_at = agentq.now()
      from placed p where t.name = p.name
    returning t.name, agentq.queue_of(t.name, t.worker_group, t.shard)
$$;


-- Give a tenant another queue or group. Its own queue keeps its name in every group.
create or replace function agentq.change_placement(
    p_name text, p_placement text, p_group text, p_own_max int, p_shards int
) returns text language plpgsql as $$
declare v_old text; v_former text[]; v_queue text;
begin
    update agentq.tenant t
       set worker_group = coalesce(p_group, t.worker_group), placement = coalesce(p_placement, t.placement),
           shard = case when coalesce(p_placement, t.placement) = 'own' then null else t.shard end,
           changed_at = agentq.now(),
           -- In another group it begins with the others, whatever it held in this one.
           shared_at = case when p_group <> t.worker_group then null else t.shared_at end,
           allowance = case when p_group <> t.worker_group then null else t.allowance end
      from (select o.name, o.placed_at, o.former_queues, agentq.queue_of(o.name, o.worker_group, o.shard) as queue
              from agentq.tenant o where o.name = p_name for no key update) old
     where t.name = p_name
    returning case when old.placed_at is not null then old.queue end, old.former_queues into v_old, v_former;
    if not found then return null; end if;
    select p.queue into v_queue from agentq.place(array[p_name], p_own_max, p_shards, 1) p;
    update agentq.tenant t
       set former_queues = array(select distinct q from unnest(array_append(v_former, v_old)) q
                                  where q is not null and q <> v_queue)
     where t.name = p_name;
    return v_queue;
end $$;
