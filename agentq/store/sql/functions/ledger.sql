-- The ledger's writes, each a function: one round trip, one commit, one order of locks.
--
-- These are applied after every migration (`agentq db upgrade`), so a function may change its body
-- freely. One that changes its arguments gets a new name, and the old one stays for one release,
-- because workers of both releases run during a deploy.
--
-- Each function names its tenant to row security before it touches a row. '*' is the relay's and
-- the operator's view over all tenants.
--
-- An entry is found by its key. `concat(state)` keeps its state out of the search: by statistics of before a burst,
-- the small index of what is admitted looks cheaper than the key, and is walked over all that has left it.


-- What a message needs: ids for the worker, names for people reading Flower.
create or replace function agentq.wake(p_session uuid, p_step uuid, p_name text, p_quarantine boolean, p_epoch int)
returns jsonb language sql immutable as
$$ select jsonb_build_object('session', p_session, 'step', p_step, 'name', p_name,
                             'quarantine', p_quarantine, 'epoch', p_epoch) $$;


-- A step's place in its session: the place of the step before it, its name, and whether it simply follows
-- (`next`), is a join, a branch by number, or a child session's first step. Found again when a part is replayed.
create or replace function agentq.place(p_before uuid, p_name text, p_as text) returns uuid language sql immutable as
$$ select md5(p_before::text || ':' || p_as || ':' || p_name)::uuid $$;


-- The place of a session's first step.
create or replace function agentq.first_place(p_session uuid) returns uuid language sql immutable as
$$ select md5(p_session::text)::uuid $$;


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
    join_step uuid, branch int, fan int, priority smallint, remaining_s double precision, queued_s double precision,
    path uuid, generation smallint, dry_effects boolean, approval uuid, repairs smallint, refusals int, repair jsonb,
    state_version int
) language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    v_serving boolean; e agentq.ledger_entry; v_deadline timestamptz;
begin
    perform set_config('agentq.tenant', p_tenant, true), set_config('synchronous_commit', 'off', true);
    select se.agent, se.agent_version, se.deadline_at, se.dry_effects,
           se.state = 'running' and se.agent || '@' || se.agent_version = any (p_serves)
           and exists (select from agentq.tenant te, agentq.worker wo
                        where te.name = p_tenant and te.state <> 'paused'
                          and wo.worker_id = p_worker and wo.state in ('live', 'draining')
                          and (p_quarantine or wo.worker_group in (te.worker_group, '*')))
      into agent, agent_version, v_deadline, dry_effects, v_serving
      from agentq.session se where se.tenant = p_tenant and se.session_id = p_session;
    if v_serving then
        update agentq.ledger_entry l
           set state = 'running', worker = p_worker, fence = l.fence + 1, fence_token = p_token,
               attempt = l.attempt + 1, started_at = v_now
         where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
           and concat(l.state) = 'queued' and l.due_at <= v_now and l.quarantine = p_quarantine
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
    branch := e.branch; fan := e.fan; priority := e.priority; path := e.path; generation := e.generation;
    approval := e.approval; repairs := e.repairs; refusals := e.refusals; repair := e.repair;
    remaining_s := extract(epoch from v_deadline - v_now); queued_s := extract(epoch from v_now - e.queued_at);
    if e.state_from is null then
        select se.input, coalesce(se.input_version, se.agent_version) into input, state_version
          from agentq.session se where se.tenant = p_tenant and se.session_id = p_session;
    else
        states := agentq.recall(p_tenant, p_session, e.state_from);
        select c.agent_version into state_version from agentq.checkpoint c
         where c.tenant = p_tenant and c.session_id = p_session and c.step_id = e.state_from;
    end if;
    return next;
end $$;


-- Give a claim back. The worker does not know whether it holds it; whoever does not know must not keep it. An attempt
-- that has called something leaves its row, so that what it spent is in the traces too. No row: it was not held so.
create or replace function agentq.disown(p_tenant text, p_session uuid, p_step uuid, p_token bigint)
returns setof jsonb language plpgsql as $$
declare v_now timestamptz := agentq.now(); v_worker uuid; e agentq.ledger_entry; s record;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select worker into v_worker from agentq.ledger_entry
     where tenant = p_tenant and session_id = p_session and step_id = p_step
       and concat(state) = 'running' and fence_token = p_token for no key update;
    if not found then return; end if;
    update agentq.ledger_entry l
       set state = 'queued', queued_at = v_now, attempt = l.attempt - 1, worker = null, fence_token = null
     where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
    returning l.* into e;
    if exists (select from agentq.reservation
                where tenant = p_tenant and session_id = p_session and step_id = p_step and fence = e.fence) then
        select agent, agent_version into s from agentq.session where tenant = p_tenant and session_id = p_session;
        perform agentq.trace_attempt(e, s.agent, s.agent_version, v_worker, 'release', v_now, null, null,
                                     agentq.usage_of_lost(e));
    end if;
    return next agentq.wake(p_session, p_step, e.name, e.quarantine, e.fence);
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
           t.state as tenant_state, t.worker_group
      into e
      from agentq.ledger_entry l
      join agentq.session s on s.tenant = l.tenant and s.session_id = l.session_id
      join agentq.tenant t on t.name = l.tenant
     where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step;
    if not found then return 'missing'; end if;
    if e.state in ('done', 'dead', 'cancelled') then return 'settled'; end if;
    if e.state = 'running' then return 'running'; end if;
    if e.session_state in ('done', 'failed', 'cancelled') then
        -- Looked at again under its lock, here and below: somebody may be reopening or resuming it.
        perform from agentq.session where tenant = p_tenant and session_id = p_session
            and state in ('done', 'failed', 'cancelled') for no key update;
        if not found then return 'not_due'; end if;
        update agentq.ledger_entry set state = 'cancelled', settled_at = v_now, unserved = null
         where tenant = p_tenant and session_id = p_session and step_id = p_step
           and state in ('ready', 'queued', 'waiting', 'held');
        return 'ended';
    end if;
    if e.state <> 'queued' then return 'not_due'; end if;
    if e.session_state = 'paused' then
        perform from agentq.session where tenant = p_tenant and session_id = p_session and state = 'paused'
            for no key update;
        if not found then return 'not_due'; end if;
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
    if not p_quarantine and exists (select from agentq.worker w
                                     where w.worker_id = p_worker and not w.worker_group in (e.worker_group, '*')) then
        -- It came here before its tenant was moved, or before this worker heard of it: admission sends it again,
        -- to the queue of the group that serves it now.
        update agentq.ledger_entry set state = 'ready'
         where tenant = p_tenant and session_id = p_session and step_id = p_step and state = 'queued';
        return 'elsewhere';
    end if;
    if not e.pinned = any (p_serves) then
        -- When nobody serves it, it waits without a slot until a worker that does is there: see `offer_served`.
        update agentq.ledger_entry set state = 'held', unserved = e.pinned
         where tenant = p_tenant and session_id = p_session and step_id = p_step and state = 'queued'
           and not exists (select from agentq.worker w
                            where w.state = 'live' and w.role = 'steps' and e.pinned = any (w.serves)
                              and (p_quarantine or w.worker_group in (e.worker_group, '*')));
        return 'unserved';
    end if;
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


-- Write the steps, children and branches that a settlement adds; admission takes them from there.
create or replace function agentq.add_successors(
    p_tenant text, p_session uuid, e agentq.ledger_entry, p_state_from uuid, p_plan jsonb, p_held boolean,
    p_now timestamptz
) returns void language plpgsql as $$
begin
    insert into agentq.ledger_entry (
        tenant, session_id, step_id, seq, name, state, due_at, attempts_max, timeout_s, priority,
        state_from, args, join_step, branch, fan, waits_for, collect, approval, path, generation)
    select p_tenant, p_session, n.id, e.seq + case when n.fan > 0 then 2 else 1 end, n.name,
           case when n.fan > 0 or n.approval is not null then 'waiting' when p_held then 'held' else 'ready' end,
           p_now + make_interval(secs => coalesce(n.delay_s, 0)),
           n.attempts_max, n.timeout_s, e.priority, p_state_from, decode(n.args, 'base64'), n.join_step, n.branch,
           coalesce(n.fan, 0), coalesce(n.fan, 0), coalesce(n."collect", false), n.approval,
           agentq.place(e.path, n.name, case when n.fan > 0 then 'join'
                                             when n.join_step is distinct from e.join_step then n.branch::text
                                             else 'next' end), e.generation
      from jsonb_to_recordset(p_plan -> 'steps') as n (
           id uuid, name text, delay_s double precision, attempts_max int, timeout_s real, args text,
           join_step uuid, branch int, fan int, "collect" boolean, approval uuid);
    if p_plan ? 'children' then
        insert into agentq.session (tenant, session_id, agent, agent_version, input, input_hash, priority,
                                    parent_session, parent_join, parent_branch, deadline_at, trace_id, dry_effects,
                                    state, hold)
        -- Children of a session that is paused begin paused, and are resumed with it.
        select p_tenant, c.id, c.agent, c.version, decode(c.input, 'base64'), decode(c.input_hash, 'base64'),
               e.priority, p_session, c.join_step, c.branch, s.deadline_at, coalesce(s.trace_id, s.session_id),
               s.dry_effects, s.state,
               case s.state when 'paused' then coalesce(s.hold, '{}') || jsonb_build_object('with', p_session) end
          from jsonb_to_recordset(p_plan -> 'children') as c (
               id uuid, agent text, version int, input text, input_hash text, join_step uuid, branch int),
               agentq.session s
         where s.tenant = p_tenant and s.session_id = p_session;
        insert into agentq.ledger_entry (tenant, session_id, step_id, seq, name, state, due_at, attempts_max,
                                         timeout_s, priority, path)
        select p_tenant, c.id, c.step_id, 0, c.name, case when p_held then 'held' else 'ready' end, p_now,
               c.attempts_max, c.timeout_s, e.priority, agentq.place(e.path, c.name, 'child ' || c.branch)
          from jsonb_to_recordset(p_plan -> 'children') as c (
               id uuid, step_id uuid, name text, attempts_max int, timeout_s real, branch int);
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


-- Count what is no ordinary end, each kind for itself; apart from the settlement of the many that go well.
-- A failure laid to a dependency is remembered as blamed; when that turns out to be out of order (`p_refund`),
-- such attempts are given back.
create or replace function agentq.count_setback(
    p_tenant text, p_session uuid, p_step uuid, p_fence int, p_token bigint, p_verdict text, p_failure jsonb, p_refund text
) returns void language sql as $$
    update agentq.ledger_entry l
       set repairs = l.repairs + (p_verdict = 'repair')::int,
           refusals = l.refusals + (p_verdict = 'postpone')::int,
           repair = case when p_verdict = 'repair' then p_failure else l.repair end,
           attempt = greatest(l.attempt - case when p_refund = l.failure ->> 'dependency' then l.blamed else 0 end, 1),
           blamed = case when p_verdict = 'retry' and p_failure ? 'dependency' then l.blamed + 1
                         when p_verdict = 'retry' or p_refund = l.failure ->> 'dependency' then 0
                         else l.blamed end
     where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
       and concat(l.state) = 'running' and l.fence = p_fence and l.fence_token = p_token
$$;


-- Record a step's end and post what follows, in one transaction.
--
-- verdict: next | end | fail | retry | repair | postpone | await | dead | release | park | cancelled
-- `closed` is false when a newer attempt owns the step: nothing was written.
-- The step that simply follows comes as plain arguments (`p_next`), because that is nearly every
-- settlement; timers, branches, children, messages and usage come in `p_plan`.
-- `p_traced_by` is the attempt's worker; null: this attempt leaves no trace.
-- `next_queued`: publish it now. `dispatch`: publish these too. `more`: ready rows wait for admission.
create or replace function agentq.settle(
    p_tenant text, p_session uuid, p_step uuid, p_fence int, p_token bigint, p_verdict text, p_delay_s double precision,
    p_kind text, p_state bytea, p_parent uuid, p_state_from uuid, p_version int, p_result bytea, p_failure jsonb,
    p_next uuid, p_next_name text, p_next_attempts int, p_next_timeout_s real, p_next_args bytea, p_plan jsonb,
    p_traced_by uuid
) returns table (closed boolean, session_state text, next_queued boolean, dispatch jsonb, more boolean)
language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    v_session text; v_agent text; v_pinned int; v_flowing boolean; e agentq.ledger_entry; v_wake jsonb;
begin
    perform set_config('agentq.tenant', p_tenant, true);

    if p_verdict in ('end', 'fail', 'dead', 'park') or p_plan ? 'messages' or p_plan ? 'branches'
        or p_plan ? 'asks' or p_plan ? 'awaits' then
        -- These touch the session too: its row first, then the entry. A spawn does not, but whoever ends
        -- the session meanwhile must see its join, which no message would ever bring to a claim. So with
        -- what waits for a person; there it also keeps a decision from coming in between.
        select state, agent, agent_version into v_session, v_agent, v_pinned from agentq.session
         where tenant = p_tenant and session_id = p_session for no key update;
    else
        select state, agent, agent_version into v_session, v_agent, v_pinned from agentq.session
         where tenant = p_tenant and session_id = p_session;
        if v_session <> 'running' or p_version > v_pinned then
            -- Somebody may be resuming or reopening it: what is held or cancelled here must not miss that.
            -- And a newer version that takes the session over changes its row.
            select state into v_session from agentq.session
             where tenant = p_tenant and session_id = p_session for no key update;
        end if;
    end if;
    if v_session not in ('running', 'paused') then
        p_verdict := 'cancelled';
    elsif p_verdict = 'cancelled' then
        p_verdict := 'release';  -- it was stopped for its session's end, and the session has been reopened
    end if;

    if p_verdict in ('retry', 'repair', 'postpone') then
        perform agentq.count_setback(p_tenant, p_session, p_step, p_fence, p_token, p_verdict, p_failure, p_plan ->> 'refund');
    end if;
    update agentq.ledger_entry l
       set state = case p_verdict when 'dead' then 'dead' when 'cancelled' then 'cancelled'
                                  when 'retry' then case v_session when 'paused' then 'held' else 'ready' end
                                  when 'postpone' then case v_session when 'paused' then 'held' else 'ready' end
                                  when 'repair' then case v_session when 'paused' then 'held' else 'ready' end
                                  when 'release' then case v_session when 'paused' then 'held' else 'queued' end
                                  when 'await' then 'waiting' when 'park' then 'held'
                                  else 'done' end,
           settled_at = case when p_verdict in ('retry', 'repair', 'postpone', 'release', 'await', 'park') then null else v_now end,
           due_at = case when p_verdict in ('retry', 'repair', 'postpone') then v_now + make_interval(secs => p_delay_s) else l.due_at end,
           queued_at = case when p_verdict = 'release' then v_now else l.queued_at end,
           attempt = case when p_verdict in ('release', 'postpone', 'await', 'park', 'repair') then l.attempt - 1
                          else l.attempt end,
           approval = case p_verdict when 'await' then (p_plan ->> 'awaits')::uuid else l.approval end,
           failure = coalesce(p_failure, l.failure), worker = null, fence_token = null,
           failures = case when p_failure is null or p_verdict = 'postpone' then l.failures
                           else agentq.remember_failure(l.failures, p_failure, v_now) end
     where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
       and concat(l.state) = 'running' and l.fence = p_fence and l.fence_token = p_token
    returning l.* into e;
    if not found then
        if p_plan ? 'charges' then
            -- Nothing of a late attempt counts, but the money it spent.
            perform agentq.settle_charges(p_tenant, p_session, p_step, p_fence, p_plan -> 'charges', 'late');
        end if;
        closed := false; session_state := v_session;
        return next;
        return;
    end if;

    if p_traced_by is not null then
        perform agentq.trace_attempt(e, v_agent, p_version, p_traced_by, p_verdict, v_now, p_failure,
                                     case when p_verdict <> 'next' then null when p_next_name is not null then p_next_name
                                          when p_plan ? 'steps' then agentq.names_in(p_plan -> 'steps') end, p_plan);
    end if;

    if p_verdict in ('next', 'end', 'fail') then
        if p_version > v_pinned then
            -- The state that follows is the newer version's, which code of the older one must leave alone.
            update agentq.session
               set input_version = coalesce(input_version, agent_version), agent_version = p_version
             where tenant = p_tenant and session_id = p_session and agent_version < p_version;
        end if;
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
        select te.state <> 'paused' and not te.shedding into v_flowing
          from agentq.tenant te where te.name = p_tenant;
        if v_flowing and e.priority > 0 and p_next is not null then
            -- Between its steps a batch gives way to what is more urgent: its slot goes there, and it waits its turn.
            v_flowing := not exists (
                select from agentq.ledger_entry l where l.tenant = p_tenant and l.state = 'ready'
                   and l.priority < e.priority and l.due_at <= v_now);
        end if;
        if e.join_step is not null and not exists (
            select from agentq.ledger_entry j where j.tenant = p_tenant and j.session_id = p_session
               and j.step_id = e.join_step and j.state = 'waiting') then
            null;  -- its join was given up, so nothing follows in this branch
        elsif p_next is not null then
            -- It takes over the slot of the step that ends here, so the chain needs no admission.
            next_queued := v_flowing and v_session = 'running';
            insert into agentq.ledger_entry (
                tenant, session_id, step_id, seq, name, state, due_at, queued_at, attempts_max, timeout_s, priority,
                state_from, args, join_step, branch, path, generation)
            values (p_tenant, p_session, p_next, e.seq + 1, p_next_name,
                    case when next_queued then 'queued' when v_session = 'paused' then 'held' else 'ready' end,
                    v_now, v_now, p_next_attempts, p_next_timeout_s, e.priority, p_state_from, p_next_args,
                    e.join_step, e.branch, agentq.place(e.path, p_next_name, 'next'), e.generation);
        elsif p_plan ? 'steps' then
            perform agentq.add_successors(p_tenant, p_session, e, p_state_from, p_plan, v_session = 'paused', v_now);
            more := true;
            if p_plan ? 'asks' then
                perform agentq.ask(p_tenant, p_session, p_step, p_fence, p_plan -> 'asks', v_now);
            end if;
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
        if p_verdict = 'dead' then
            perform agentq.bury(p_tenant, p_session, p_step, v_now);
        end if;
    when 'release' then
        if e.state = 'queued' then
            v_wake := agentq.wake(p_session, p_step, e.name, e.quarantine, e.fence);
        end if;
    when 'await' then
        if p_plan ? 'asks' then
            perform agentq.ask(p_tenant, p_session, p_step, p_fence, p_plan -> 'asks', v_now);
        elsif not exists (select from agentq.approval a
                           where a.tenant = p_tenant and a.approval_id = e.approval and a.state = 'open') then
            perform agentq.release_waiting(p_tenant, e.approval, null, v_now);  -- decided since the attempt looked
            more := true;
        end if;
    when 'park' then
        perform agentq.hold_session(p_tenant, p_session, p_plan -> 'hold', v_now);
    else
        null;
    end case;

    if v_wake is null and not next_queued then
        v_wake := agentq.hand_on_slot(p_tenant, v_now);
    end if;
    if p_plan ? 'memories' and p_verdict in ('next', 'end', 'fail') then
        perform agentq.write_memories(p_tenant, p_plan -> 'memories', p_session, p_step, v_agent, e.attempt, e.name, v_now);
    end if;
    if p_plan ? 'charges' then
        -- Last, because a tenant's windows are what its settlements contend for.
        perform agentq.settle_charges(p_tenant, p_session, p_step, p_fence, p_plan -> 'charges', 'settlement');
    end if;
    dispatch := case when v_wake is not null then jsonb_build_array(v_wake) end;
    return next;
end $$;
