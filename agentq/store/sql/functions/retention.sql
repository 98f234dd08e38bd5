-- Retention: sessions that are over are removed with their children, and what they cost is kept.

-- Remove up to `p_max` families of sessions, the oldest first; how many sessions went.
-- A family is a session that nobody spawned, with all beneath it, and goes when all of it has ended. `p_all`:
-- whether it has or not, which is for a tenant that is erased.
create or replace function agentq.remove_sessions(p_tenant text, p_before timestamptz, p_max int, p_all boolean)
returns int language plpgsql as $$
declare v_gone uuid[]; t text;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    with recursive roots as (
        select s.session_id from agentq.session s
         where s.tenant = p_tenant and s.parent_session is null and s.created_at < p_before
           and (p_all or s.ended_at < p_before)
         order by s.created_at limit p_max for update skip locked
    ), family as (
        select r.session_id, r.session_id as root from roots r
        union all
        select c.session_id, f.root from agentq.session c join family f on c.parent_session = f.session_id
         where c.tenant = p_tenant
    )
    select array_agg(f.session_id) into v_gone from family f
     where p_all or not exists (
        select from family g join agentq.session s on s.tenant = p_tenant and s.session_id = g.session_id
         where g.root = f.root and s.state in ('running', 'paused'));
    if v_gone is null then return 0; end if;
    -- What is being settled now is waited for, so that its cost is kept too; after that nothing is any more.
    perform from agentq.ledger_entry where tenant = p_tenant and session_id = any (v_gone)
      order by session_id, step_id for update;
    perform from agentq.trace where tenant = p_tenant and session_id = any (v_gone) and ordinal = 0 for update;
    perform agentq.keep_spend(p_tenant, v_gone);
    delete from agentq.notice n using agentq.approval a
     where n.tenant = p_tenant and a.tenant = p_tenant and a.approval_id = n.approval_id and a.session_id = any (v_gone);
    delete from agentq.notice n using agentq.anomaly a
     where n.tenant = p_tenant and a.tenant = p_tenant and a.anomaly_id = n.anomaly_id and a.session_id = any (v_gone);
    foreach t in array array['anomaly', 'session_tally', 'spend_session', 'approval', 'dead_letter', 'decision', 'trace',
                             'session_event', 'message', 'effect', 'checkpoint', 'branch', 'ledger_entry', 'session'] loop
        execute format('delete from agentq.%I where tenant = $1 and session_id = any ($2)', t) using p_tenant, v_gone;
    end loop;
    delete from agentq.budget_window where tenant = p_tenant and scope = 'session' and subject = any (v_gone::text[]);
    return cardinality(v_gone);
end $$;


-- The next tenants after a name that keep what they have for so many days only; `again` are looked at beside them.
-- By an index of such tenants alone, so many at once: what is to go by days may wait for the others' turn.
create or replace function agentq.keepers(p_after text, p_tenants int, p_again text[])
returns table (tenant text, retention_days int, memory_days int, in_turn boolean) language sql stable as $$
    select n.name, n.retention_days, n.memory_days, true
      from (select t.name, t.retention_days, t.memory_days from agentq.tenant t
             where (t.retention_days is not null or t.memory_days is not null) and t.name > p_after
             order by t.name limit p_tenants) n
    union all
    select t.name, t.retention_days, t.memory_days, false from agentq.tenant t where t.name = any (p_again)
$$;


-- One batch of sessions of the next tenants, small whatever their number; where it ends, the next turn goes on. One
-- relay at a time. Told is of how many something went, and of the last that was looked at, in turn.
create or replace function agentq.remove_expired_of(p_after text, p_tenants int, p_again text[], p_max int)
returns table (tenant text, sessions int, in_turn boolean) language plpgsql as $$
#variable_conflict use_column
declare k record; v_last text; v_left int := p_max;
begin
    if not pg_try_advisory_xact_lock(1634166386, 0) then return; end if;
    perform set_config('agentq.tenant', '*', true);
    for k in select * from agentq.keepers(p_after, p_tenants, p_again) loop
        if k.in_turn then v_last := greatest(v_last, k.tenant); end if;
        if k.retention_days is null then continue; end if;
        tenant := k.tenant; in_turn := false;
        sessions := agentq.remove_sessions(
            k.tenant, agentq.now() - make_interval(days => k.retention_days), v_left, false);
        v_left := v_left - sessions;
        if sessions > 0 then return next; end if;
        exit when v_left <= 0;
    end loop;
    tenant := v_last; sessions := 0; in_turn := true;
    if v_last is not null then return next; end if;
end $$;
