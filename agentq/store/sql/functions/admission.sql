-- Admission: the backlog taken into the broker's share, as far as each tenant's concurrency allows.
-- How functions are written and replaced: see ledger.sql.
--
-- What takes from the front of the backlog must not depend on statistics: they are those of before the burst until an
-- analyze comes by, and by them Postgres would walk over all that a tenant has for each step that is taken. So rows are
-- found in the order of `ledger_entry_ready` alone (no sorts), and changed one by one by their key, not by a join.


-- Take the tenant's backlog into the broker, as far as its concurrency allows.
-- Counted under the tenant's lock, so two admissions never share a slot. Losing this commit in a
-- crash leaves the rows `ready`, so it need not wait for the disk.
create or replace function agentq.admit(p_tenant text, p_max int)
returns setof jsonb language plpgsql set enable_sort = off as $$
declare
    v_now timestamptz := agentq.now();
    v_cap int; v_allowance int; v_admitted int; v_room int; d record; v_wake jsonb;
begin
    perform set_config('agentq.tenant', p_tenant, true), set_config('synchronous_commit', 'off', true);
    perform pg_advisory_xact_lock(1634166382, hashtext(p_tenant));
    -- A draining tenant takes no new sessions, but goes on with those it has.
    -- An allowance that no relay has renewed for a while binds nobody (see agentq/policies/fairness.py).
    select concurrency, case when shared_at > v_now - interval '5 s' then allowance end into v_cap, v_allowance
      from agentq.tenant where name = p_tenant and state <> 'paused';
    if not found then return; end if;
    v_cap := least(v_cap, v_allowance);
    -- Priorities cannot starve: what has been due for half a minute for each step of its priority goes
    -- before all that comes later, and so do the steps that follow it.
    for d in select session_id, step_id from agentq.ledger_entry
              where tenant = p_tenant and state = 'ready' and priority > 0
                and due_at <= v_now - interval '30 s' * priority
              order by priority, due_at limit p_max for update skip locked
    loop
        update agentq.ledger_entry set priority = 0
         where tenant = p_tenant and session_id = d.session_id and step_id = d.step_id;
    end loop;
    -- State by state: so both are counted in the index of what is admitted.
    v_admitted := (select count(*) from agentq.ledger_entry where tenant = p_tenant and state = 'queued')
                + (select count(*) from agentq.ledger_entry where tenant = p_tenant and state = 'running');
    if v_admitted <= v_cap then
        update agentq.tenant set shedding = false where name = p_tenant and shedding;
    end if;
    v_room := least(greatest(v_cap - v_admitted, 0), p_max);
    if v_allowance is null and v_room > 0 then
        -- Nobody has divided the slots yet: a flood takes those that are free and no more, so that whoever
        -- comes next does not find the broker full of it. Who has nothing gets one step in, whatever is free.
        v_room := least(v_room, greatest(agentq.free_slots(p_tenant), (v_admitted = 0)::int));
    end if;
    for d in select session_id, step_id from agentq.ledger_entry
              where tenant = p_tenant and state = 'ready' and due_at <= v_now
              order by priority, due_at limit v_room for update skip locked
    loop
        update agentq.ledger_entry set state = 'queued', queued_at = v_now, dispatches = 0
         where tenant = p_tenant and session_id = d.session_id and step_id = d.step_id
        returning agentq.wake(session_id, step_id, name, quarantine, fence) into v_wake;
        return next v_wake;
    end loop;
end $$;


-- The same for several tenants, in the order of their names, in which their locks are taken: a fleet with a hundred
-- tenants must not spend its rounds on a hundred round trips.
create or replace function agentq.admit_each(p_tenants text[], p_max int)
returns table (tenant text, wake jsonb) language plpgsql as $$
begin
    for tenant in select name from unnest(p_tenants) name order by name loop
        for wake in select agentq.admit(tenant, p_max) loop
            return next;
        end loop;
    end loop;
end $$;


-- Whether a step that was admitted holds a slot, or will in a moment. What has been with the broker for half a
-- minute, or was sent twice again, is taken by nobody: its worker has gone, or its message goes astray.
-- The time is given, so that the planner can put the expression in the function's place.
create or replace function agentq.is_under_way(p_state text, p_queued_at timestamptz, p_dispatches int, p_now timestamptz)
returns boolean language sql immutable as
$$ select p_state = 'running' or p_dispatches < 2 and p_queued_at > p_now - interval '30 s' $$;


-- How many slots of the workers that serve a tenant nobody holds. While there is no worker, eight for each tenant, with
-- which the first one to start is busy at once: were there no bound, all that came meanwhile would be with the broker by
-- then, and be served in turn whatever the weights.
-- Not exact while others admit, and need not be: the cap is what is exact.
create or replace function agentq.free_slots(p_tenant text) returns int language plpgsql as $$
declare v_group text; v_slots int; v_free int; v_now timestamptz := agentq.now();
begin
    select worker_group into v_group from agentq.tenant where name = p_tenant;
    select sum(slots) into v_slots from agentq.worker where state = 'live' and worker_group in (v_group, '*');
    if coalesce(v_slots, 0) = 0 then
        return 8 - (select count(*) from agentq.ledger_entry where tenant = p_tenant and state in ('queued', 'running'));
    end if;
    perform set_config('agentq.tenant', '*', true);
    select v_slots - count(*) into v_free
      from (select from agentq.ledger_entry e join agentq.tenant t on t.name = e.tenant and t.worker_group = v_group
             where e.state in ('queued', 'running') and agentq.is_under_way(e.state, e.queued_at, e.dispatches, v_now)
               and not e.quarantine limit v_slots) held;
    perform set_config('agentq.tenant', p_tenant, true);
    return v_free;
end $$;


-- Every tenant that has a backlog, found by hopping through the index from tenant to tenant, so
-- that a flood of one is not walked to find the next. Told to be few, so that their records are looked up one by one.
create or replace function agentq.backlogged() returns setof text language sql stable rows 10 as $$
    with recursive hop as (
        (select tenant from agentq.ledger_entry where state = 'ready' order by tenant limit 1)
        union all
        select (select e.tenant from agentq.ledger_entry e
                 where e.state = 'ready' and e.tenant > hop.tenant order by e.tenant limit 1)
          from hop where hop.tenant is not null
    )
    select tenant from hop where tenant is not null
$$;


-- Give the slot that a step leaves to the tenant's next due step: no count, no lock, no polling.
-- A tenant above a lowered cap is shedding: its slots are not handed on until admission says so. While slots are
-- divided, one that the tenant must give up, or has nothing due for, goes to another.
create or replace function agentq.hand_on_slot(p_tenant text, p_now timestamptz)
returns jsonb language plpgsql as $$
declare v_of record; v_wake jsonb;
begin
    select state <> 'paused' and not shedding as flowing, worker_group,
           sharing and shared_at > p_now - interval '5 s' as divided
      into v_of from agentq.tenant where name = p_tenant;
    if v_of.flowing then
        v_wake := agentq.admit_next(p_tenant, p_now);
    end if;
    if v_wake is null and v_of.divided then
        v_wake := agentq.pass_slot_on(p_tenant, v_of.worker_group, p_now);
    end if;
    return v_wake;
end $$;


-- The tenant's next due step, admitted; null when there is none.
create or replace function agentq.admit_next(p_tenant text, p_now timestamptz)
returns jsonb language plpgsql set enable_sort = off as $$
declare v_session uuid; v_step uuid; v_wake jsonb;
begin
    select session_id, step_id into v_session, v_step from agentq.ledger_entry
     where tenant = p_tenant and state = 'ready' and due_at <= p_now
     order by priority, due_at limit 1 for update skip locked;
    if not found then return null; end if;
    update agentq.ledger_entry set state = 'queued', queued_at = p_now, dispatches = 0
     where tenant = p_tenant and session_id = v_session and step_id = v_step
    returning agentq.wake(session_id, step_id, name, quarantine, fence) into v_wake;
    return v_wake;
end $$;


-- Give a slot that a tenant leaves to another of its group, so that none is idle until slots are divided again: to the
-- one that is furthest behind, what it holds now counted as a quarter of a second each; back to its own when nobody
-- else has use for it.
-- Looked for among the next few by name, because no index has what a division writes. Another tenant's lock is never
-- waited for: who has it admits just now.
create or replace function agentq.pass_slot_on(p_tenant text, p_group text, p_now timestamptz)
returns jsonb language plpgsql as $$
declare v_tenant text := current_setting('agentq.tenant', true); t record; v_wake jsonb;
begin
    -- A flood that has the slots to itself has nobody to pass them to; nor need its slots be counted for that.
    if not exists (select from agentq.tenant where sharing and name <> p_tenant and worker_group = p_group) then
        return null;
    end if;
    if agentq.free_slots(p_tenant) <= 0 then return null; end if;
    perform set_config('agentq.tenant', '*', true);
    for t in
        with others as materialized (
            (select name, concurrency, time_used, weight from agentq.tenant
              where sharing and name >= p_tenant and worker_group = p_group and state <> 'paused' order by name limit 16)
            union all
            (select name, concurrency, time_used, weight from agentq.tenant
              where sharing and name < p_tenant and worker_group = p_group and state <> 'paused' order by name limit 16))
        select o.name, o.concurrency from others o
         cross join lateral (select count(*) as steps from agentq.ledger_entry e
                              where e.tenant = o.name and e.state in ('queued', 'running')) held
         where held.steps < o.concurrency
           and exists (select from agentq.ledger_entry e
                        where e.tenant = o.name and e.state = 'ready' and e.due_at <= p_now)
         order by o.name = p_tenant, o.time_used + (held.steps + 1) * 0.25 / o.weight
    loop
        continue when not pg_try_advisory_xact_lock(1634166382, hashtext(t.name));
        -- Counted again, now that nobody else admits: caps are exact.
        continue when t.concurrency <= (select count(*) from agentq.ledger_entry e
                                         where e.tenant = t.name and e.state in ('queued', 'running'));
        v_wake := agentq.admit_next(t.name, p_now) || jsonb_build_object('tenant', t.name);
        exit when v_wake is not null;
    end loop;
    perform set_config('agentq.tenant', v_tenant, true);
    return v_wake;
end $$;


-- A step gave its slot up before it was claimed (nobody serves it, its session was paused or has ended): whoever is next
-- gets it, or a thousand such steps would cost everybody a thousand divisions. Counted, unlike a slot that is handed on.
create or replace function agentq.refill_slot(p_tenant text) returns setof jsonb language plpgsql as $$
declare v_now timestamptz := agentq.now(); v_group text; v_wake jsonb;
begin
    return query select agentq.admit(p_tenant, 1);
    if found then return; end if;
    select worker_group into v_group from agentq.tenant
     where name = p_tenant and sharing and shared_at > v_now - interval '5 s';
    if not found then return; end if;
    v_wake := agentq.pass_slot_on(p_tenant, v_group, v_now);
    if v_wake is not null then return next v_wake; end if;
end $$;


-- A session that was ended from outside left no slot: the join that its end made ready waits for admission.
create or replace function agentq.await_admission(p_tenant text, p_wake jsonb) returns void language sql as $$
    update agentq.ledger_entry set state = 'ready'
     where tenant = p_tenant and session_id = (p_wake ->> 'session')::uuid and step_id = (p_wake ->> 'step')::uuid
       and state = 'queued'
$$;


-- What waits and what runs, of each tenant that has any, or of one: from the two indices of what has not ended, so
-- that neither tenants without work nor steps that are over are walked through.
create or replace function agentq.work(p_tenant text)
returns table (tenant text, ready int, queued int, running int, oldest_due_s double precision)
language plpgsql stable rows 50 as $$
#variable_conflict use_column
declare v_now timestamptz := agentq.now();
begin
    return query
    select w.tenant, sum(w.ready)::int, sum(w.queued)::int, sum(w.running)::int,
           case when min(w.oldest) <= v_now then extract(epoch from v_now - min(w.oldest))::double precision end
      from (select e.tenant, count(*) as ready, 0::bigint as queued, 0::bigint as running, min(e.due_at) as oldest
              from agentq.ledger_entry e
             where e.state = 'ready' and (p_tenant is null or e.tenant = p_tenant) group by e.tenant
            union all
            select e.tenant, 0, count(*) filter (where e.state = 'queued'), count(*) filter (where e.state = 'running'),
                   min(e.due_at) filter (where e.state = 'queued')
              from agentq.ledger_entry e
             where e.state in ('queued', 'running') and (p_tenant is null or e.tenant = p_tenant) group by e.tenant) w
     group by w.tenant;
end $$;
