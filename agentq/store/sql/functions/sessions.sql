-- Sessions begun and ended, branches closed, joins woken.
-- How functions are written and replaced: see ledger.sql.


-- Close one branch and, when it was the last, wake its join. Siblings that end at the same instant
-- meet at the session's row: whoever is second sees the other's count.
create or replace function agentq.finish_branch(
    p_tenant text, p_session uuid, p_join uuid, p_branch int, p_ok boolean, p_result bytea, p_failure jsonb,
    p_now timestamptz
) returns jsonb language plpgsql as $$
declare v_state text; j record; v_wake jsonb;
begin
    select state into v_state from agentq.session
     where tenant = p_tenant and session_id = p_session for no key update;
    if v_state not in ('running', 'paused') then return null; end if;
    update agentq.branch set state = case when p_ok then 'done' else 'failed' end, result = p_result, failure = p_failure
     where tenant = p_tenant and session_id = p_session and join_step = p_join and branch = p_branch and state = 'open';
    if not found then return null; end if;
    select state, collect, join_step, branch into j from agentq.ledger_entry
     where tenant = p_tenant and session_id = p_session and step_id = p_join;
    if j.state <> 'waiting' then return null; end if;  -- given up, or a replay took its place
    if not p_ok and not j.collect then
        if j.join_step is not null then
            -- A spawn within a branch fails that branch; the join around it decides what that means.
            perform agentq.cancel_join(p_tenant, p_session, p_join, p_now);
            return agentq.finish_branch(p_tenant, p_session, j.join_step, j.branch, false, null, p_failure, p_now);
        end if;
        return agentq.end_session(p_tenant, p_session, 'failed', null, p_failure, p_now);
    end if;
    update agentq.ledger_entry
       set waits_for = waits_for - 1,
           state = case when waits_for > 1 then 'waiting' when v_state = 'paused' then 'held' else 'queued' end,
           queued_at = case when waits_for > 1 then queued_at else p_now end
     where tenant = p_tenant and session_id = p_session and step_id = p_join and state = 'waiting'
    returning case when state = 'queued' then agentq.wake(session_id, step_id, name, quarantine, fence) end into v_wake;
    return v_wake;
end $$;


-- Give up a join within a session that goes on: the join and what waits beneath it. Steps that run now
-- finish, and nothing follows them; child sessions are ended by the relay.
create or replace function agentq.cancel_join(p_tenant text, p_session uuid, p_join uuid, p_now timestamptz)
returns void language sql as $$
    with recursive beneath as (
        select p_join as step_id
        union
        select e.step_id from agentq.ledger_entry e join beneath b on e.join_step = b.step_id
         where e.tenant = p_tenant and e.session_id = p_session and e.fan > 0
    )
    update agentq.ledger_entry e set state = 'cancelled', settled_at = p_now, unserved = null
     where e.tenant = p_tenant and e.session_id = p_session and e.state in ('ready', 'queued', 'waiting', 'held')
       and (e.step_id = p_join or e.join_step in (select step_id from beneath));
    select agentq.void_approvals(p_tenant, p_session, p_now)
$$;


-- End a session: its result or failure, no further step, and the parent's branch closed.
-- Steps that run now finish on their own; their settlement finds the session ended.
create or replace function agentq.end_session(
    p_tenant text, p_session uuid, p_state text, p_result bytea, p_failure jsonb, p_now timestamptz
) returns jsonb language plpgsql as $$
declare s record;
begin
    update agentq.session set state = p_state, result = p_result, failure = p_failure, ended_at = p_now, hold = null
     where tenant = p_tenant and session_id = p_session and state in ('running', 'paused')
    returning parent_session, parent_join, parent_branch, generation, concurrency_key into s;
    if not found then return null; end if;
    if p_state <> 'done' then
        update agentq.ledger_entry set state = 'cancelled', settled_at = p_now, unserved = null
         where tenant = p_tenant and session_id = p_session and state in ('ready', 'queued', 'waiting', 'held');
        perform agentq.void_approvals(p_tenant, p_session, p_now);
    end if;
    perform agentq.look_at(p_tenant, p_session);
    if s.generation > 0 then
        perform agentq.close_letters(p_tenant, p_session, p_state, p_now);
    end if;
    if s.concurrency_key is not null then perform agentq.pass_turn(p_tenant, s.concurrency_key); end if;
    if s.parent_session is null then return null; end if;
    return agentq.finish_branch(p_tenant, s.parent_session, s.parent_join, s.parent_branch,
                                p_state = 'done', p_result, p_failure, p_now);
end $$;


-- Make a tenant that nobody has added as another one is: its record, its budgets but those of single sessions, and its
-- rates. False: it is there already, or that other one is not.
create or replace function agentq.add_tenant_like(p_tenant text, p_like text) returns boolean language plpgsql as $$
begin
    if exists (select from agentq.tenant where name = p_tenant) then return false; end if;
    insert into agentq.tenant (name, concurrency, weight, preapproved, agents, tools, retention_days, memory_days,
                               trace_content, worker_group, placement)
    select p_tenant, concurrency, weight, preapproved, agents, tools, retention_days, memory_days, trace_content,
           worker_group, placement
      from agentq.tenant where name = p_like
    on conflict do nothing;
    if not found then return false; end if;
    perform set_config('agentq.tenant', '*', true);
    insert into agentq.budget (tenant, scope, subject, period, cost_micros, tokens, on_refusal)
    select p_tenant, scope, subject, period, cost_micros, tokens, on_refusal from agentq.budget b
     where b.tenant = p_like
       and not (scope = 'session' and subject ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$');
    insert into agentq.rate_limit (tenant, provider, requests_per_min, tokens_per_min)
    select p_tenant, provider, requests_per_min, tokens_per_min from agentq.rate_limit where tenant = p_like
    on conflict do nothing;
    perform agentq.record_new_tenant(p_tenant, jsonb_build_object('like', p_like));
    return true;
end $$;


-- Nobody added it by hand; whoever wonders where it came from reads it here.
create or replace function agentq.record_new_tenant(p_tenant text, p_detail jsonb) returns void language sql as $$
    insert into agentq.operator_action (operator, tenant, action, target, reason, detail)
    values ('agentq', p_tenant, 'tenant add', p_tenant, 'a session was started for it, and unknown_tenant is create', p_detail)
$$;


-- Start a session, or find the one that the key already started.
-- outcome: created | found | conflict | unknown_tenant | tenant_closed | agent_refused | busy | unsealed
-- Of sessions with one concurrency key only one runs; what a second start does is `p_on_conflict`: it waits for
-- its turn (queue), is refused (reject), ends the ones before it (replace), or joins the newest of them (merge).
create or replace function agentq.start_session(
    p_tenant text, p_session uuid, p_agent text, p_version int, p_key text, p_input bytea, p_hash bytea,
    p_step uuid, p_name text, p_attempts_max int, p_timeout_s real, p_priority smallint, p_deadline_s double precision,
    p_create_with int, p_turn text, p_on_conflict text, p_trace uuid default null, p_span bigint default null
) returns table (outcome text, session_id uuid) language plpgsql as $$
#variable_conflict use_column
declare v_now timestamptz := agentq.now(); v_state text; v_agents text[]; v_before uuid; v_waits boolean := false; f record;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select state, agents into v_state, v_agents from agentq.tenant where name = p_tenant;
    if not found then
        if p_create_with is null then return query select 'unknown_tenant', null::uuid; return; end if;
        insert into agentq.tenant (name, concurrency) values (p_tenant, p_create_with) on conflict do nothing;
        if found then perform agentq.record_new_tenant(p_tenant, jsonb_build_object('concurrency', p_create_with)); end if;
    elsif v_state = 'draining' and not exists (select from agentq.session s where s.tenant = p_tenant and s.key = p_key) then
        return query select 'tenant_closed', null::uuid; return;
    end if;
    if get_byte(p_input, 0) <> 1 and exists (select from agentq.tenant_key where tenant = p_tenant and state = 'active') then
        return query select 'unsealed', null::uuid; return;  -- a caller without the keys must not leave it in plain
    end if;
    if not p_agent = any (v_agents) and not exists (
        select from agentq.session s where s.tenant = p_tenant and s.key = p_key) then
        return query select 'agent_refused', null::uuid; return;
    end if;
    if p_turn is not null and not exists (select from agentq.session s where s.tenant = p_tenant and s.key = p_key) then
        v_before := agentq.take_turn(p_tenant, p_turn, p_on_conflict, v_now);
        if v_before is not null and p_on_conflict = 'reject' then return query select 'busy', v_before; return; end if;
        if v_before is not null and p_on_conflict = 'merge' then return query select 'found', v_before; return; end if;
        v_waits := v_before is not null;
    end if;
    insert into agentq.session (tenant, session_id, agent, agent_version, key, input, input_hash, priority, deadline_at,
                                created_at, concurrency_key, trace_id, trace_parent, state, hold)
    values (p_tenant, p_session, p_agent, p_version, p_key, p_input, p_hash, p_priority,
            v_now + make_interval(secs => p_deadline_s), v_now, p_turn, p_trace, p_span, case when v_waits then 'paused' else 'running' end,
            case when v_waits then jsonb_build_object('kind', 'turn', 'by', 'agentq', 'at', v_now, 'reason',
                                                      format('session %s has the same concurrency key', v_before)) end)
    on conflict (tenant, key) where key is not null do nothing;
    if not found then
        select s.session_id, s.input_hash = p_hash as same into strict f from agentq.session s
         where s.tenant = p_tenant and s.key = p_key;
        return query select case when f.same then 'found' else 'conflict' end, f.session_id;
        return;
    end if;
    insert into agentq.ledger_entry (tenant, session_id, step_id, seq, name, state, due_at, attempts_max, timeout_s,
                                     priority, path)
    values (p_tenant, p_session, p_step, 0, p_name, case when v_waits then 'held' else 'ready' end, v_now,
            p_attempts_max, p_timeout_s, p_priority, agentq.first_place(p_session));
    return query select 'created', p_session;
end $$;


-- The session that has the turn of a concurrency key, or of several the newest; null: the turn is free.
-- Whoever starts and whoever ends such a session meet at the lock, so that no turn is given twice or to nobody.
create or replace function agentq.take_turn(p_tenant text, p_turn text, p_on_conflict text, p_now timestamptz)
returns uuid language plpgsql as $$
declare v_found uuid; s record;
begin
    if p_on_conflict = 'replace' then
        -- Sessions are locked before their turn, as whoever ends one does.
        perform from agentq.session where tenant = p_tenant and concurrency_key = p_turn and state in ('running', 'paused')
          order by session_id for no key update;
    end if;
    perform pg_advisory_xact_lock(1634166384, hashtext(p_tenant || ' ' || p_turn));
    if p_on_conflict = 'replace' then
        -- Those that wait first, so that none of them gets the turn of the one that ends.
        for s in
            select e.session_id from agentq.session e
             where e.tenant = p_tenant and e.concurrency_key = p_turn and e.state in ('running', 'paused')
             order by e.created_at desc, e.session_id desc
        loop
            perform agentq.await_admission(p_tenant, agentq.end_session(p_tenant, s.session_id, 'cancelled', null,
                jsonb_build_object('kind', 'cancelled', 'type', 'SessionCancelled', 'message',
                                   'a later session with the same concurrency key replaced it'), p_now));
        end loop;
        return null;
    end if;
    select session_id into v_found from agentq.session
     where tenant = p_tenant and concurrency_key = p_turn and state in ('running', 'paused')
     order by created_at desc, session_id desc limit 1;
    return v_found;
end $$;


-- Whether a session waits for a turn that another one has.
create or replace function agentq.turn_is_anothers(p_tenant text, p_session uuid) returns boolean language sql stable as $$
    select exists (
        select from agentq.session s
          join agentq.session o on o.tenant = s.tenant and o.concurrency_key = s.concurrency_key
                               and o.session_id <> s.session_id
                               and (o.state = 'running' or o.state = 'paused' and o.hold ->> 'kind' is distinct from 'turn')
         where s.tenant = p_tenant and s.session_id = p_session and s.hold ->> 'kind' = 'turn')
$$;


-- A session that comes back from its end, locked by the caller: when another one has the turn by now, it waits.
create or replace function agentq.wait_for_turn(p_tenant text, p_session uuid, p_turn text, p_now timestamptz)
returns void language plpgsql as $$
declare v_before uuid;
begin
    perform pg_advisory_xact_lock(1634166384, hashtext(p_tenant || ' ' || p_turn));
    select o.session_id into v_before from agentq.session o
     where o.tenant = p_tenant and o.concurrency_key = p_turn and o.session_id <> p_session
       and (o.state = 'running' or o.state = 'paused' and o.hold ->> 'kind' is distinct from 'turn')
     limit 1;
    if not found then return; end if;
    perform agentq.hold_session(p_tenant, p_session, jsonb_build_object('kind', 'turn', 'by', 'agentq', 'reason',
        format('session %s has the same concurrency key', v_before)), p_now);
end $$;


-- Give the turn of a concurrency key to the session that has waited longest, when nobody has it.
create or replace function agentq.pass_turn(p_tenant text, p_turn text) returns uuid language plpgsql as $$
declare v_next uuid;
begin
    perform pg_advisory_xact_lock(1634166384, hashtext(p_tenant || ' ' || p_turn));
    if exists (select from agentq.session where tenant = p_tenant and concurrency_key = p_turn
                  and (state = 'running' or state = 'paused' and hold ->> 'kind' is distinct from 'turn')) then
        return null;
    end if;
    select session_id into v_next from agentq.session
     where tenant = p_tenant and concurrency_key = p_turn and state = 'paused'
     order by created_at, session_id limit 1;
    if v_next is null then return null; end if;
    update agentq.session set state = 'running', hold = null where tenant = p_tenant and session_id = v_next;
    update agentq.ledger_entry set state = 'ready'
     where tenant = p_tenant and session_id = v_next and state = 'held';
    return v_next;
end $$;


-- Turns that nobody has and somebody waits for: what a session leaves that ended in a way of its own.
create or replace function agentq.pass_turns(p_max int) returns int language plpgsql as $$
declare w record; v_passed int := 0;
begin
    perform set_config('agentq.tenant', '*', true);
    for w in
        select tenant, concurrency_key from agentq.session
         where concurrency_key is not null and state in ('running', 'paused')
         group by tenant, concurrency_key
        having bool_and(state = 'paused' and hold ->> 'kind' is not distinct from 'turn') limit p_max
    loop
        v_passed := v_passed + (agentq.pass_turn(w.tenant, w.concurrency_key) is not null)::int;
    end loop;
    return v_passed;
end $$;


-- Cancel a session. Steps that run now are told at their worker's next heartbeat.
create or replace function agentq.cancel_session(p_tenant text, p_session uuid, p_failure jsonb)
returns table (found boolean, state text, dispatch jsonb) language plpgsql as $$
#variable_conflict use_column
declare v_state text; v_wake jsonb;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select s.state into v_state from agentq.session s
     where s.tenant = p_tenant and s.session_id = p_session for no key update;
    if v_state is null then return query select false, null::text, null::jsonb; return; end if;
    if v_state in ('running', 'paused') then
        v_wake := agentq.end_session(p_tenant, p_session, 'cancelled', null, p_failure, agentq.now());
        perform agentq.await_admission(p_tenant, v_wake);
        v_state := 'cancelled';
    end if;
    return query select true, v_state, null::jsonb;
end $$;


-- Sessions whose deadline is over, and children whose parent ended without them.
create or replace function agentq.expire_sessions(p_max int)
returns table (tenant text, session_id uuid, dispatch jsonb) language plpgsql as $$
#variable_conflict use_column
declare v_now timestamptz := agentq.now(); s record; v_wake jsonb;
begin
    perform set_config('agentq.tenant', '*', true);
    for s in
        select e.tenant, e.session_id, 'deadline' as kind, 'the session''s deadline is over' as message
          from agentq.session e
         where e.deadline_at <= v_now and e.state in ('running', 'paused')
         order by e.deadline_at limit p_max for no key update skip locked
    loop
        v_wake := agentq.end_session(s.tenant, s.session_id, 'failed', null,
            jsonb_build_object('kind', s.kind, 'type', 'DeadlineExceeded', 'message', s.message), v_now);
        perform agentq.await_admission(s.tenant, v_wake);
        return query select s.tenant, s.session_id, null::jsonb;
    end loop;
    for s in
        select c.tenant, c.session_id, p.state from agentq.session c
          join agentq.session p on p.tenant = c.tenant and p.session_id = c.parent_session
         where c.parent_session is not null and c.state in ('running', 'paused')
           and (p.state in ('failed', 'cancelled') or exists (
                select from agentq.ledger_entry j where j.tenant = c.tenant and j.session_id = c.parent_session
                   and j.step_id = c.parent_join and j.state = 'cancelled'))
         limit p_max for no key update of c skip locked
    loop
        -- Again under the parent's lock: somebody may have reopened it.
        perform from agentq.session c
           join agentq.session p on p.tenant = c.tenant and p.session_id = c.parent_session
          where c.tenant = s.tenant and c.session_id = s.session_id and p.state = s.state
            and (p.state in ('failed', 'cancelled') or exists (
                 select from agentq.ledger_entry j where j.tenant = c.tenant and j.session_id = c.parent_session
                    and j.step_id = c.parent_join and j.state = 'cancelled'))
            for no key update of p;
        if not found then continue; end if;
        v_wake := agentq.end_session(s.tenant, s.session_id, 'cancelled', null,
            jsonb_build_object('kind', 'cancelled', 'type', 'SessionCancelled', 'message', 'its parent session ' || case s.state when 'running' then 'gave up the branch' else s.state end),
            v_now);
        perform agentq.await_admission(s.tenant, v_wake);
        return query select s.tenant, s.session_id, null::jsonb;
    end loop;
end $$;
