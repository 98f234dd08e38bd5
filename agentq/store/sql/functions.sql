-- The ledger's writes, each a function: one round trip, one commit, one order of locks.
--
-- These are applied after every migration (`agentq db upgrade`), so a function may change its body
-- freely. One that changes its arguments gets a new name, and the old one stays for one release,
-- because workers of both releases run during a deploy.
--
-- Each function names its tenant to row security before it touches a row. '*' is the relay's and
-- the operator's view over all tenants.

-- What a message needs: ids for the worker, names for people reading Flower.
create or replace function agentq.wake(p_session uuid, p_step uuid, p_name text, p_quarantine boolean, p_epoch int)
returns jsonb language sql immutable as
$$ select jsonb_build_object('session', p_session, 'step', p_step, 'name', p_name,
                             'quarantine', p_quarantine, 'epoch', p_epoch) $$;


-- Take the tenant's backlog into the broker, as far as its concurrency allows.
-- Counted under the tenant's lock, so two admissions never share a slot. Losing this commit in a
-- crash leaves the rows `ready`, so it need not wait for the disk.
create or replace function agentq.admit(p_tenant text, p_max int)
returns setof jsonb language plpgsql as $$
declare
    v_now timestamptz := agentq.now();
    v_cap int; v_admitted int; v_waiting boolean;
begin
    perform set_config('agentq.tenant', p_tenant, true), set_config('synchronous_commit', 'off', true);
    perform pg_advisory_xact_lock(1634166382, hashtext(p_tenant));
    -- A draining tenant takes no new sessions, but goes on with those it has.
    select concurrency into v_cap from agentq.tenant where name = p_tenant and state <> 'paused';
    if not found then return; end if;
    select count(*) into v_admitted from agentq.ledger_entry
     where tenant = p_tenant and state in ('queued', 'running');
    if v_admitted <= v_cap then
        update agentq.tenant set shedding = false where name = p_tenant and shedding;
    end if;
    return query
        -- Materialized: as a plain subquery the planner may run it once for each row of `e`, and each
        -- time it locks the next rows, past the limit.
        with due as materialized (
            select session_id, step_id from agentq.ledger_entry
             where tenant = p_tenant and state = 'ready' and due_at <= v_now
             order by priority, due_at
             limit least(greatest(v_cap - v_admitted, 0), p_max)
               for update skip locked)
        update agentq.ledger_entry e set state = 'queued', queued_at = v_now, dispatches = 0
          from due where e.tenant = p_tenant and e.session_id = due.session_id and e.step_id = due.step_id
        returning agentq.wake(e.session_id, e.step_id, e.name, e.quarantine, e.fence);
end $$;


-- Every tenant that has a backlog, found by hopping through the index from tenant to tenant, so
-- that a flood of one is not walked to find the next.
create or replace function agentq.backlogged() returns setof text language sql stable as $$
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
-- A tenant above a lowered cap is shedding: its slots are not handed on until admission says so.
create or replace function agentq.hand_on_slot(p_tenant text, p_now timestamptz)
returns jsonb language plpgsql as $$
declare v_wake jsonb;
begin
    if not exists (select from agentq.tenant where name = p_tenant and state <> 'paused' and not shedding) then
        return null;
    end if;
    with due as materialized (  -- see admit
        select session_id, step_id from agentq.ledger_entry
         where tenant = p_tenant and state = 'ready' and due_at <= p_now
         order by priority, due_at limit 1 for update skip locked)
    update agentq.ledger_entry e set state = 'queued', queued_at = p_now, dispatches = 0
      from due where e.tenant = p_tenant and e.session_id = due.session_id and e.step_id = due.step_id
    returning agentq.wake(e.session_id, e.step_id, e.name, e.quarantine, e.fence) into v_wake;
    return v_wake;
end $$;


-- Claim a step for one attempt. Only an admitted, due step of a running session is granted, to a
-- live worker that serves the agent's version. The fence grows, the token is new.
-- Losing this commit in a database crash is harmless, so it does not wait for the disk.
-- Four look-ups by primary key instead of one join: half the time, and nothing is lost by reading the
-- session first, because whoever ends it meanwhile is met again at the heartbeat and the settlement.
create or replace function agentq.claim(
    p_tenant text, p_session uuid, p_step uuid, p_worker uuid, p_token bigint, p_serves text[], p_quarantine boolean
) returns table (
    status text, fence int, attempt int, attempts_max int, crashes smallint, seq int, name text, agent text,
    agent_version int, timeout_s real, args bytea, state_from uuid, states bytea[], input bytea,
    join_step uuid, branch int, fan int, priority smallint, remaining_s double precision, queued_s double precision
) language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    v_serving boolean; e agentq.ledger_entry; v_deadline timestamptz;
begin
    perform set_config('agentq.tenant', p_tenant, true), set_config('synchronous_commit', 'off', true);
    select se.agent, se.agent_version, se.deadline_at,
           se.state = 'running' and se.agent || '@' || se.agent_version = any (p_serves)
           and exists (select from agentq.tenant te where te.name = p_tenant and te.state <> 'paused')
           and exists (select from agentq.worker wo where wo.worker_id = p_worker and wo.state in ('live', 'draining'))
      into agent, agent_version, v_deadline, v_serving
      from agentq.session se where se.tenant = p_tenant and se.session_id = p_session;
    if v_serving then
        update agentq.ledger_entry l
           set state = 'running', worker = p_worker, fence = l.fence + 1, fence_token = p_token,
               attempt = l.attempt + 1, started_at = v_now
         where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
           and l.state = 'queued' and l.due_at <= v_now and l.quarantine = p_quarantine
        returning l.* into e;
    end if;
    if e.step_id is null then
        status := agentq.why_not(p_tenant, p_session, p_step, p_worker, p_serves, p_quarantine);
        return next;
        return;
    end if;
    status := 'granted';
    fence := e.fence; attempt := e.attempt; attempts_max := e.attempts_max; crashes := e.crashes; seq := e.seq;
    name := e.name; timeout_s := e.timeout_s; args := e.args; state_from := e.state_from; join_step := e.join_step;
    branch := e.branch; fan := e.fan; priority := e.priority;
    remaining_s := extract(epoch from v_deadline - v_now); queued_s := extract(epoch from v_now - e.queued_at);
    if e.state_from is null then
        select se.input into input from agentq.session se where se.tenant = p_tenant and se.session_id = p_session;
    else
        states := agentq.recall(p_tenant, p_session, e.state_from);
    end if;
    return next;
end $$;


-- Why a claim was not granted; parks what must not come straight back.
create or replace function agentq.why_not(
    p_tenant text, p_session uuid, p_step uuid, p_worker uuid, p_serves text[], p_quarantine boolean
) returns text language plpgsql as $$
declare
    v_now timestamptz := agentq.now();
    e record;
begin
    select l.state, l.due_at, l.quarantine, s.state as session_state, s.agent || '@' || s.agent_version as pinned,
           t.state as tenant_state
      into e
      from agentq.ledger_entry l
      join agentq.session s on s.tenant = l.tenant and s.session_id = l.session_id
      join agentq.tenant t on t.name = l.tenant
     where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step;
    if not found then return 'missing'; end if;
    if e.state in ('done', 'dead', 'cancelled') then return 'settled'; end if;
    if e.state = 'running' then return 'running'; end if;
    if e.session_state in ('done', 'failed', 'cancelled') then
        update agentq.ledger_entry set state = 'cancelled', settled_at = v_now
         where tenant = p_tenant and session_id = p_session and step_id = p_step
           and state in ('ready', 'queued', 'waiting', 'held');
        return 'ended';
    end if;
    if e.state <> 'queued' then return 'not_due'; end if;
    if e.session_state = 'paused' then
        update agentq.ledger_entry set state = 'held'
         where tenant = p_tenant and session_id = p_session and step_id = p_step and state = 'queued';
        return 'paused';
    end if;
    if e.tenant_state = 'paused' then
        update agentq.ledger_entry set state = 'ready'
         where tenant = p_tenant and session_id = p_session and step_id = p_step and state = 'queued';
        return 'tenant_paused';
    end if;
    if e.quarantine <> p_quarantine then return 'quarantined'; end if;
    if not e.pinned = any (p_serves) then return 'unserved'; end if;
    if not exists (select from agentq.worker where worker_id = p_worker and state in ('live', 'draining')) then
        return 'worker_dead';
    end if;
    return 'not_due';
end $$;


-- A state as its snapshot followed by the changes since, oldest first.
create or replace function agentq.recall(p_tenant text, p_session uuid, p_step uuid)
returns bytea[] language plpgsql stable as $$
declare v_kind text; v_state bytea; v_parent uuid; v_states bytea[] := '{}';
begin
    loop
        select kind, state, parent into strict v_kind, v_state, v_parent from agentq.checkpoint
         where tenant = p_tenant and session_id = p_session and step_id = p_step;
        v_states := v_state || v_states;
        exit when v_kind = 'full';
        p_step := v_parent;
    end loop;
    return v_states;
end $$;


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
    select collect, join_step, branch into j from agentq.ledger_entry
     where tenant = p_tenant and session_id = p_session and step_id = p_join;
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
    update agentq.ledger_entry e set state = 'cancelled', settled_at = p_now
     where e.tenant = p_tenant and e.session_id = p_session and e.state in ('ready', 'queued', 'waiting', 'held')
       and (e.step_id = p_join or e.join_step in (select step_id from beneath))
$$;


-- End a session: its result or failure, no further step, and the parent's branch closed.
-- Steps that run now finish on their own; their settlement finds the session ended.
create or replace function agentq.end_session(
    p_tenant text, p_session uuid, p_state text, p_result bytea, p_failure jsonb, p_now timestamptz
) returns jsonb language plpgsql as $$
declare s record;
begin
    update agentq.session set state = p_state, result = p_result, failure = p_failure, ended_at = p_now
     where tenant = p_tenant and session_id = p_session and state in ('running', 'paused')
    returning parent_session, parent_join, parent_branch into s;
    if not found then return null; end if;
    if p_state <> 'done' then
        update agentq.ledger_entry set state = 'cancelled', settled_at = p_now
         where tenant = p_tenant and session_id = p_session and state in ('ready', 'queued', 'waiting', 'held');
    end if;
    if s.parent_session is null then return null; end if;
    return agentq.finish_branch(p_tenant, s.parent_session, s.parent_join, s.parent_branch,
                                p_state = 'done', p_result, p_failure, p_now);
end $$;


-- Write the steps, children and branches that a settlement adds; admission takes them from there.
create or replace function agentq.add_successors(
    p_tenant text, p_session uuid, p_seq int, p_priority smallint, p_state_from uuid, p_plan jsonb, p_held boolean,
    p_now timestamptz
) returns void language plpgsql as $$
begin
    insert into agentq.ledger_entry (
        tenant, session_id, step_id, seq, name, state, due_at, attempts_max, timeout_s, priority,
        state_from, args, join_step, branch, fan, waits_for, collect)
    select p_tenant, p_session, n.id, p_seq + case when n.fan > 0 then 2 else 1 end, n.name,
           case when n.fan > 0 then 'waiting' when p_held then 'held' else 'ready' end,
           p_now + make_interval(secs => coalesce(n.delay_s, 0)),
           n.attempts_max, n.timeout_s, p_priority, p_state_from, decode(n.args, 'base64'), n.join_step, n.branch,
           coalesce(n.fan, 0), coalesce(n.fan, 0), coalesce(n."collect", false)
      from jsonb_to_recordset(p_plan -> 'steps') as n (
           id uuid, name text, delay_s double precision, attempts_max int, timeout_s real, args text,
           join_step uuid, branch int, fan int, "collect" boolean);
    if p_plan ? 'children' then
        insert into agentq.session (tenant, session_id, agent, agent_version, input, input_hash, priority,
                                    parent_session, parent_join, parent_branch, deadline_at)
        select p_tenant, c.id, c.agent, c.version, decode(c.input, 'base64'), decode(c.input_hash, 'base64'),
               p_priority, p_session, c.join_step, c.branch,
               (select deadline_at from agentq.session where tenant = p_tenant and session_id = p_session)
          from jsonb_to_recordset(p_plan -> 'children') as c (
               id uuid, agent text, version int, input text, input_hash text, join_step uuid, branch int);
        insert into agentq.ledger_entry (tenant, session_id, step_id, seq, name, state, due_at, attempts_max,
                                         timeout_s, priority)
        select p_tenant, c.id, c.step_id, 0, c.name, 'ready', p_now, c.attempts_max, c.timeout_s, p_priority
          from jsonb_to_recordset(p_plan -> 'children') as c (
               id uuid, step_id uuid, name text, attempts_max int, timeout_s real);
    end if;
    if p_plan ? 'branches' then
        insert into agentq.branch (tenant, session_id, join_step, branch, child_session)
        select p_tenant, p_session, b.join_step, b.branch, b.child
          from jsonb_to_recordset(p_plan -> 'branches') as b (join_step uuid, branch int, child uuid);
    end if;
end $$;


-- Append to the session's history. Two branches may append at once, so the session's row is held.
create or replace function agentq.append_messages(p_tenant text, p_session uuid, p_step uuid, p_messages jsonb)
returns void language plpgsql as $$
declare v_last bigint;
begin
    perform from agentq.session where tenant = p_tenant and session_id = p_session for no key update;
    select coalesce(max(seq), 0) into v_last from agentq.message where tenant = p_tenant and session_id = p_session;
    insert into agentq.message (tenant, session_id, seq, step_id, body, written_by)
    select p_tenant, p_session, v_last + m.n, p_step, decode(m.item ->> 'body', 'base64'), m.item ->> 'by'
      from jsonb_array_elements(p_messages) with ordinality as m (item, n);
end $$;


-- Record a step's end and post what follows, in one transaction.
--
-- verdict: next | end | fail | retry | postpone | dead | release | cancelled
-- `closed` is false when a newer attempt owns the step: nothing was written.
-- The step that simply follows comes as plain arguments (`p_next`), because that is nearly every
-- settlement; timers, branches, children, messages and usage come in `p_plan`.
-- `next_queued`: publish it now. `dispatch`: publish these too. `more`: ready rows wait for admission.
create or replace function agentq.settle(
    p_tenant text, p_session uuid, p_step uuid, p_fence int, p_token bigint, p_verdict text, p_delay_s double precision,
    p_kind text, p_state bytea, p_parent uuid, p_state_from uuid, p_version int, p_result bytea, p_failure jsonb,
    p_next uuid, p_next_name text, p_next_attempts int, p_next_timeout_s real, p_next_args bytea, p_plan jsonb
) returns table (closed boolean, session_state text, next_queued boolean, dispatch jsonb, more boolean)
language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    v_session text; v_flowing boolean; e agentq.ledger_entry; v_wake jsonb;
begin
    perform set_config('agentq.tenant', p_tenant, true);

    if p_verdict in ('end', 'fail', 'dead') or p_plan ? 'messages' or p_plan ? 'branches' then
        -- These touch the session too: its row first, then the entry. A spawn does not, but whoever ends
        -- the session meanwhile must see its join, which no message would ever bring to a claim.
        select state into v_session from agentq.session
         where tenant = p_tenant and session_id = p_session for no key update;
    else
        select state into v_session from agentq.session where tenant = p_tenant and session_id = p_session;
    end if;
    if v_session not in ('running', 'paused') then
        p_verdict := 'cancelled';
    end if;

    update agentq.ledger_entry l
       set state = case p_verdict when 'dead' then 'dead' when 'cancelled' then 'cancelled'
                                  when 'retry' then case v_session when 'paused' then 'held' else 'ready' end
                                  when 'postpone' then case v_session when 'paused' then 'held' else 'ready' end
                                  when 'release' then case v_session when 'paused' then 'held' else 'queued' end
                                  else 'done' end,
           settled_at = case when p_verdict in ('retry', 'postpone', 'release') then null else v_now end,
           due_at = case when p_verdict in ('retry', 'postpone') then v_now + make_interval(secs => p_delay_s) else l.due_at end,
           queued_at = case when p_verdict = 'release' then v_now else l.queued_at end,
           attempt = case when p_verdict in ('release', 'postpone') then l.attempt - 1 else l.attempt end,
           failure = coalesce(p_failure, l.failure), worker = null, fence_token = null
     where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
       and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token
    returning l.* into e;
    if not found then
        closed := false; session_state := v_session;
        return next;
        return;
    end if;

    if p_verdict in ('next', 'end', 'fail') then
        insert into agentq.checkpoint (tenant, session_id, step_id, kind, parent, state, result, agent_version,
                                       cost_micros, tokens_in, tokens_out)
        values (p_tenant, p_session, p_step, p_kind, p_parent, p_state, p_result, p_version,
                coalesce((p_plan -> 'usage' ->> 'cost_micros')::bigint, 0),
                coalesce((p_plan -> 'usage' ->> 'tokens_in')::bigint, 0),
                coalesce((p_plan -> 'usage' ->> 'tokens_out')::bigint, 0));
        if p_plan ? 'messages' then
            perform agentq.append_messages(p_tenant, p_session, p_step, p_plan -> 'messages');
        end if;
    end if;

    closed := true; session_state := v_session; next_queued := false; more := false;
    case p_verdict
    when 'next' then
        select te.state <> 'paused' and not te.shedding into v_flowing from agentq.tenant te where te.name = p_tenant;
        if e.join_step is not null and not exists (
            select from agentq.ledger_entry j where j.tenant = p_tenant and j.session_id = p_session
               and j.step_id = e.join_step and j.state = 'waiting') then
            null;  -- its join was given up, so nothing follows in this branch
        elsif p_next is not null then
            -- It takes over the slot of the step that ends here, so the chain needs no admission.
            next_queued := v_flowing and v_session = 'running';
            insert into agentq.ledger_entry (
                tenant, session_id, step_id, seq, name, state, due_at, queued_at, attempts_max, timeout_s, priority,
                state_from, args, join_step, branch)
            values (p_tenant, p_session, p_next, e.seq + 1, p_next_name,
                    case when next_queued then 'queued' when v_session = 'paused' then 'held' else 'ready' end,
                    v_now, v_now, p_next_attempts, p_next_timeout_s, e.priority, p_state_from, p_next_args,
                    e.join_step, e.branch);
        elsif p_plan ? 'steps' then
            perform agentq.add_successors(p_tenant, p_session, e.seq, e.priority, p_state_from, p_plan,
                                          v_session = 'paused', v_now);
            more := true;
        end if;
    when 'end' then
        if e.join_step is null then
            v_wake := agentq.end_session(p_tenant, p_session, 'done', p_result, null, v_now);
        else
            v_wake := agentq.finish_branch(p_tenant, p_session, e.join_step, e.branch, true, p_result, null, v_now);
        end if;
    when 'fail', 'dead' then
        if e.join_step is null then
            v_wake := agentq.end_session(p_tenant, p_session, 'failed', null, p_failure, v_now);
        else
            v_wake := agentq.finish_branch(p_tenant, p_session, e.join_step, e.branch, false, null, p_failure, v_now);
        end if;
    when 'release' then
        if e.state = 'queued' then
            v_wake := agentq.wake(p_session, p_step, e.name, e.quarantine, e.fence);
        end if;
    else
        null;
    end case;

    if v_wake is null and not next_queued then
        v_wake := agentq.hand_on_slot(p_tenant, v_now);
    end if;
    dispatch := case when v_wake is not null then jsonb_build_array(v_wake) end;
    return next;
end $$;


-- Start a session, or find the one that the key already started.
-- outcome: created | found | conflict | unknown_tenant | tenant_closed
create or replace function agentq.start_session(
    p_tenant text, p_session uuid, p_agent text, p_version int, p_key text, p_input bytea, p_hash bytea,
    p_step uuid, p_name text, p_attempts_max int, p_timeout_s real, p_priority smallint, p_deadline_s double precision,
    p_create_with int
) returns table (outcome text, session_id uuid) language plpgsql as $$
#variable_conflict use_column
declare v_now timestamptz := agentq.now(); v_state text; f record;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select state into v_state from agentq.tenant where name = p_tenant;
    if not found then
        if p_create_with is null then return query select 'unknown_tenant', null::uuid; return; end if;
        insert into agentq.tenant (name, concurrency) values (p_tenant, p_create_with) on conflict do nothing;
    elsif v_state = 'draining' and not exists (select from agentq.session s where s.tenant = p_tenant and s.key = p_key) then
        return query select 'tenant_closed', null::uuid; return;
    end if;
    insert into agentq.session (tenant, session_id, agent, agent_version, key, input, input_hash, priority, deadline_at,
                                created_at)
    values (p_tenant, p_session, p_agent, p_version, p_key, p_input, p_hash, p_priority,
            v_now + make_interval(secs => p_deadline_s), v_now)
    on conflict (tenant, key) where key is not null do nothing;
    if not found then
        select s.session_id, s.input_hash = p_hash as same into strict f from agentq.session s
         where s.tenant = p_tenant and s.key = p_key;
        return query select case when f.same then 'found' else 'conflict' end, f.session_id;
        return;
    end if;
    insert into agentq.ledger_entry (tenant, session_id, step_id, seq, name, state, due_at, attempts_max, timeout_s,
                                     priority)
    values (p_tenant, p_session, p_step, 0, p_name, 'ready', v_now, p_attempts_max, p_timeout_s, p_priority);
    return query select 'created', p_session;
end $$;


-- A session that was ended from outside left no slot: the join that its end made ready waits for admission.
create or replace function agentq.await_admission(p_tenant text, p_wake jsonb) returns void language sql as $$
    update agentq.ledger_entry set state = 'ready'
     where tenant = p_tenant and session_id = (p_wake ->> 'session')::uuid and step_id = (p_wake ->> 'step')::uuid
       and state = 'queued'
$$;


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
        v_wake := agentq.end_session(s.tenant, s.session_id, 'cancelled', null,
            jsonb_build_object('kind', 'cancelled', 'type', 'SessionCancelled', 'message', 'its parent session ' || case s.state when 'running' then 'gave up the branch' else s.state end),
            v_now);
        perform agentq.await_admission(s.tenant, v_wake);
        return query select s.tenant, s.session_id, null::jsonb;
    end loop;
end $$;


-- Processes that died: their liveness lock is free, or their lease is over, at two looks with no
-- heartbeat between.
create or replace function agentq.look_for_dead(p_lease_s double precision, p_look_s double precision)
returns setof uuid language plpgsql as $$
declare
    v_now timestamptz := agentq.now();
    w record; v_free boolean;
begin
    for w in
        select * from agentq.worker
         where state in ('live', 'draining')
           -- A restart took everybody's lock: whoever has not been heard since gets a lease to come back.
           and (seen_at > pg_postmaster_start_time()
                or clock_timestamp() > pg_postmaster_start_time() + make_interval(secs => p_lease_s))
         order by worker_id for update skip locked
    loop
        v_free := pg_try_advisory_lock(w.lock_key);
        if v_free then perform pg_advisory_unlock(w.lock_key); end if;
        if v_free or w.lease_until < v_now then
            if w.missing_since is null or w.seen_at > w.missing_since then
                update agentq.worker set missing_since = v_now where worker_id = w.worker_id;
            elsif w.missing_since <= v_now - make_interval(secs => p_look_s) then
                update agentq.worker set state = 'dead', stopped_at = v_now where worker_id = w.worker_id;
                return next w.worker_id;
            end if;
        elsif w.missing_since is not null then
            update agentq.worker set missing_since = null where worker_id = w.worker_id;
        end if;
    end loop;
end $$;


-- Take back the steps of dead workers. The first death returns a step to the ordinary pool, the
-- second makes it a suspect for quarantine, and only one that kills its worker there is buried.
create or replace function agentq.take_back(p_max int)
returns table (tenant text, session_id uuid, step_id uuid, fate text, dispatch jsonb) language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    e record; v_wake jsonb; v_fate text; v_failure jsonb;
begin
    perform set_config('agentq.tenant', '*', true);
    for e in
        select l.* from agentq.ledger_entry l
         where l.state = 'running'
           and not exists (select from agentq.worker w where w.worker_id = l.worker and w.state in ('live', 'draining'))
         order by l.tenant, l.session_id, l.step_id limit p_max
    loop
        -- The session first, then the entry: the order every other writer keeps.
        perform from agentq.session s where s.tenant = e.tenant and s.session_id = e.session_id for no key update skip locked;
        if not found then continue; end if;
        v_fate := case when e.quarantine then 'buried' when e.crashes >= 1 then 'suspect' else 'again' end;
        v_failure := jsonb_build_object('kind', 'worker_lost', 'type', 'WorkerLost', 'attempt', e.attempt,
            'message', format('the worker died under this step %s times, the last time alone in quarantine', e.crashes + 1));
        update agentq.ledger_entry l
           set state = case v_fate when 'buried' then 'dead' else 'queued' end,
               settled_at = case v_fate when 'buried' then v_now end,
               failure = case v_fate when 'buried' then v_failure else l.failure end,
               crashes = l.crashes + 1, attempt = l.attempt - 1, quarantine = l.quarantine or v_fate = 'suspect',
               worker = null, fence_token = null, queued_at = v_now, dispatches = 0
         where l.tenant = e.tenant and l.session_id = e.session_id and l.step_id = e.step_id
           and l.state = 'running' and l.fence = e.fence and l.fence_token = e.fence_token;
        if not found then continue; end if;
        if v_fate = 'buried' then
            if e.join_step is null then
                v_wake := agentq.end_session(e.tenant, e.session_id, 'failed', null, v_failure, v_now);
            else
                v_wake := agentq.finish_branch(e.tenant, e.session_id, e.join_step, e.branch, false, null, v_failure, v_now);
            end if;
            v_wake := coalesce(v_wake, agentq.hand_on_slot(e.tenant, v_now));
        else
            v_wake := agentq.wake(e.session_id, e.step_id, e.name, e.quarantine or v_fate = 'suspect', e.fence);
        end if;
        return query select e.tenant, e.session_id, e.step_id, v_fate, v_wake;
    end loop;
end $$;


-- Claim an effect before its call goes out. Only the attempt that holds the step's fence may.
-- outcome: fresh | again | done | pending | mine | held | unknown | conflict | superseded
-- A claim that is not idempotent waits for the disk (`p_durable`): after a crash it must be known.
create or replace function agentq.claim_effect(
    p_tenant text, p_key text, p_session uuid, p_step uuid, p_fence int, p_token bigint, p_name text, p_hash bytea,
    p_durable boolean
) returns table (outcome text, result bytea, failure jsonb) language plpgsql as $$
#variable_conflict use_column
declare f record;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    if not p_durable then perform set_config('synchronous_commit', 'off', true); end if;
    if not exists (select from agentq.ledger_entry l
                    where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
                      and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token) then
        return query select 'superseded', null::bytea, null::jsonb; return;
    end if;
    insert into agentq.effect (tenant, effect_key, session_id, step_id, fence, name, args_hash)
    values (p_tenant, p_key, p_session, p_step, p_fence, p_name, p_hash)
    on conflict (tenant, effect_key) do nothing;
    if found then return query select 'fresh', null::bytea, null::jsonb; return; end if;
    select * into strict f from agentq.effect e where e.tenant = p_tenant and e.effect_key = p_key for no key update;
    if f.args_hash <> p_hash then
        return query select 'conflict', null::bytea, null::jsonb; return;
    end if;
    if f.state = 'pending' and (f.session_id, f.step_id, f.fence) = (p_session, p_step, p_fence) then
        return query select 'mine', null::bytea, null::jsonb; return;
    end if;
    if f.state = 'pending' and (f.session_id, f.step_id) <> (p_session, p_step) and exists (
        select from agentq.ledger_entry l
         where l.tenant = p_tenant and l.session_id = f.session_id and l.step_id = f.step_id
           and l.state = 'running' and l.fence = f.fence) then
        return query select 'held', null::bytea, null::jsonb; return;
    end if;
    if f.state = 'failed' then
        update agentq.effect e set state = 'pending', settled_at = null, failure = null, session_id = p_session,
               step_id = p_step, fence = p_fence, calls = e.calls + 1, claimed_at = agentq.now()
         where e.tenant = p_tenant and e.effect_key = p_key;
        return query select 'again', null::bytea, null::jsonb; return;
    end if;
    return query select f.state, f.result, f.failure;
end $$;


-- Take over an effect that a dead attempt left pending, to call it again or to settle what was found.
create or replace function agentq.take_over_effect(
    p_tenant text, p_key text, p_session uuid, p_step uuid, p_fence int, p_token bigint, p_calling boolean
) returns boolean language plpgsql as $$
declare f record;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    if not exists (select from agentq.ledger_entry l
                    where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
                      and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token) then
        return false;
    end if;
    select * into f from agentq.effect e
     where e.tenant = p_tenant and e.effect_key = p_key and e.state = 'pending' for no key update;
    if not found then return false; end if;
    -- Two steps that share the key may both have found it pending: the second must not take it from the first.
    if (f.session_id, f.step_id) <> (p_session, p_step) and exists (
        select from agentq.ledger_entry l
         where l.tenant = p_tenant and l.session_id = f.session_id and l.step_id = f.step_id
           and l.state = 'running' and l.fence = f.fence) then
        return false;
    end if;
    update agentq.effect set session_id = p_session, step_id = p_step, fence = p_fence, claimed_at = agentq.now(),
           calls = calls + case when p_calling then 1 else 0 end
     where tenant = p_tenant and effect_key = p_key;
    return true;
end $$;


-- Store what a call came to. False: another attempt took the effect over; this result is not it.
-- Storing it again, because the answer was lost, is no loss.
create or replace function agentq.settle_effect(
    p_tenant text, p_key text, p_session uuid, p_step uuid, p_fence int, p_state text, p_result bytea, p_failure jsonb
) returns boolean language plpgsql as $$
begin
    perform set_config('agentq.tenant', p_tenant, true);
    update agentq.effect set state = p_state, result = p_result, failure = p_failure, settled_at = agentq.now()
     where tenant = p_tenant and effect_key = p_key and state = 'pending'
       and session_id = p_session and step_id = p_step and fence = p_fence;
    return found or exists (
        select from agentq.effect
         where tenant = p_tenant and effect_key = p_key and state = p_state and result is not distinct from p_result
           and session_id = p_session and step_id = p_step and fence = p_fence);
end $$;
