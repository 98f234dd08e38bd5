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
    foreach t in array array['anomaly', 'session_tally', 'approval', 'dead_letter', 'decision', 'trace', 'session_event', 'message', 'effect',
                             'checkpoint', 'branch', 'ledger_entry', 'session'] loop
        execute format('delete from agentq.%I where tenant = $1 and session_id = any ($2)', t) using p_tenant, v_gone;
    end loop;
    delete from agentq.budget_window where tenant = p_tenant and scope = 'session' and subject = any (v_gone::text[]);
    return cardinality(v_gone);
end $$;


-- One batch for each tenant that keeps its sessions for so many days only. One relay at a time.
create or replace function agentq.remove_expired(p_max int)
returns table (tenant text, sessions int) language plpgsql as $$
#variable_conflict use_column
declare t record;
begin
    if not pg_try_advisory_xact_lock(1634166386, 0) then return; end if;
    for t in select name, retention_days from agentq.tenant where retention_days is not null order by name loop
        tenant := t.name;
        sessions := agentq.remove_sessions(t.name, agentq.now() - make_interval(days => t.retention_days), p_max, false);
        if sessions > 0 then return next; end if;
    end loop;
end $$;
