-- What people do to a session: pause, resume, kill, reopen. How functions are written and replaced: see ledger.sql.


-- Pause a running session for a reason; its row is locked by the caller. What runs now finishes, what follows is held.
create or replace function agentq.hold_session(p_tenant text, p_session uuid, p_hold jsonb, p_now timestamptz)
returns boolean language plpgsql as $$
begin
    update agentq.session set state = 'paused', hold = coalesce(p_hold, '{}') || jsonb_build_object('at', p_now)
     where tenant = p_tenant and session_id = p_session and state = 'running';
    if not found then return false; end if;
    update agentq.ledger_entry set state = 'held'
     where tenant = p_tenant and session_id = p_session and state in ('ready', 'queued');
    perform agentq.look_at(p_tenant, p_session);
    return true;
end $$;


-- Pause one session. `state` is null when there is none; `changed` is false when it was not running.
create or replace function agentq.pause_session(p_tenant text, p_session uuid, p_hold jsonb)
returns table (state text, changed boolean) language plpgsql as $$
#variable_conflict use_column
declare s record;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select e.state into s from agentq.session e
     where e.tenant = p_tenant and e.session_id = p_session for no key update;
    if not found then return query select null::text, false; return; end if;
    changed := agentq.hold_session(p_tenant, p_session, p_hold, agentq.now());
    return query select case when changed then 'paused' else s.state end, changed;
end $$;


-- Let a paused session go on. What was held waits for admission; a timer keeps its time. One that waits for the turn
-- of its concurrency key waits on, while another session has it.
create or replace function agentq.resume_session(p_tenant text, p_session uuid)
returns table (state text, changed boolean) language plpgsql as $$
#variable_conflict use_column
declare v_state text;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select s.state into v_state from agentq.session s
     where s.tenant = p_tenant and s.session_id = p_session for no key update;
    if v_state is distinct from 'paused' then return query select v_state, false; return; end if;
    if agentq.turn_is_anothers(p_tenant, p_session) then return query select 'paused', false; return; end if;
    update agentq.session s set state = 'running', hold = null where s.tenant = p_tenant and s.session_id = p_session;
    update agentq.ledger_entry l set state = 'ready', unserved = null
     where l.tenant = p_tenant and l.session_id = p_session and l.state = 'held';
    return query select 'running', true;
end $$;


-- Take the fence from what runs now of a session, or of these steps of it: whatever it returns is thrown away. Each
-- attempt leaves its row here, because nobody else will write it, with what it is known to have used; what its calls
-- come to later is added there. Returns how many there were.
create or replace function agentq.fence_off(
    p_tenant text, p_session uuid, p_steps uuid[], p_failure jsonb, p_now timestamptz
) returns int language plpgsql as $$
declare e agentq.ledger_entry; s record; v_fenced int := 0;
begin
    select agent, agent_version into s from agentq.session where tenant = p_tenant and session_id = p_session;
    for e in
        with runs as (
            select * from agentq.ledger_entry
             where tenant = p_tenant and session_id = p_session and state = 'running'
               and (p_steps is null or step_id = any (p_steps))
             order by step_id for no key update)
        update agentq.ledger_entry l
           set state = 'cancelled', settled_at = p_now, worker = null, fence_token = null
          from runs
         where l.tenant = p_tenant and l.session_id = p_session and l.step_id = runs.step_id
        returning runs.*
    loop
        v_fenced := v_fenced + 1;
        perform agentq.trace_attempt(e, s.agent, s.agent_version, e.worker, 'cancelled', p_now, p_failure, null,
                                     agentq.usage_of_lost(e));
    end loop;
    return v_fenced;
end $$;


-- End a runaway now: the session is cancelled, and what runs has lost its fence, so that whatever it returns is
-- thrown away. Of a session that had ended, the attempts that still run are fenced all the same.
create or replace function agentq.kill_session(p_tenant text, p_session uuid, p_failure jsonb)
returns table (state text, changed boolean, fenced int) language plpgsql as $$
#variable_conflict use_column
declare v_state text; v_wake jsonb; v_now timestamptz := agentq.now();
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select s.state into v_state from agentq.session s
     where s.tenant = p_tenant and s.session_id = p_session for no key update;
    if not found then return query select null::text, false, 0; return; end if;
    changed := v_state in ('running', 'paused');
    if changed then
        v_wake := agentq.end_session(p_tenant, p_session, 'cancelled', null, p_failure, v_now);
        perform agentq.await_admission(p_tenant, v_wake);
        v_state := 'cancelled';
    end if;
    fenced := agentq.fence_off(p_tenant, p_session, null, p_failure, v_now);
    return query select v_state, changed, fenced;
end $$;


-- ── reopening ───────────────────────────────────────────────────────────────
--
-- A session goes on from one of its steps, in a new generation. That step, and whatever came after it, keeps its
-- rows and is marked as superseded; a copy of the step takes its place, under the same path, so that the effects
-- that were recorded there are recalled. What the session's end had cancelled beside it is revived.
--
--   a step that still runs      is fenced off, as by a kill
--   the joins around the step   wait again for its branch; one that had run is copied, with what its other branches
--                               came to, and runs again
--   children beneath            of a join that was superseded are ended by the relay; of one that waits again they
--                               go on: an ended one is reopened too, a finished one closes its branch
--   the parent                  when it failed with this child: reopened at its join. When it waits for it still:
--                               the branch is opened. When it went on without it: left alone
--   the deadline                when it is over, a new one must be given, or none


-- A step and all that came after it, as far as no replay has replaced it. Branches beneath a join came before it.
create or replace function agentq.from_step_on(p_tenant text, p_session uuid, p_step uuid)
returns setof uuid language sql stable as $$
    with recursive at as materialized (
        select join_step, branch, seq from agentq.ledger_entry
         where tenant = p_tenant and session_id = p_session and step_id = p_step
    ), after as (
        select l.step_id, l.fan from agentq.ledger_entry l, at
         where l.tenant = p_tenant and l.session_id = p_session and l.superseded is null
           and l.join_step is not distinct from at.join_step and l.branch is not distinct from at.branch
           and l.seq > at.seq
        union
        select l.step_id, l.fan from agentq.ledger_entry l join after a on l.join_step = a.step_id
         where l.tenant = p_tenant and l.session_id = p_session and l.superseded is null
    )
    select step_id from after union select p_step
$$;


-- Mark a step and all that came after it as superseded.
create or replace function agentq.supersede(p_tenant text, p_session uuid, p_step uuid, p_by smallint, p_now timestamptz)
returns void language plpgsql as $$
begin
    perform agentq.fence_off(p_tenant, p_session, array(select agentq.from_step_on(p_tenant, p_session, p_step)),
        jsonb_build_object('kind', 'cancelled', 'type', 'StepReplaced',
                           'message', 'the session was sent back, and goes on without this attempt'), p_now);
    update agentq.ledger_entry l
       set superseded = p_by, worker = null, fence_token = null, unserved = null,
           state = case when l.state in ('done', 'dead') then l.state else 'cancelled' end,
           settled_at = coalesce(l.settled_at, p_now)
      from agentq.from_step_on(p_tenant, p_session, p_step) as gone
     where l.tenant = p_tenant and l.session_id = p_session and l.step_id = gone;
end $$;


-- Put a copy in a step's place. A join that is to wait again (`p_open`: for that branch) gets copies of its branches.
create or replace function agentq.replace_step(
    p_tenant text, p_session uuid, p_step uuid, p_copy uuid, p_open int, p_by smallint, p_now timestamptz
) returns void language plpgsql as $$
begin
    perform agentq.supersede(p_tenant, p_session, p_step, p_by, p_now);
    insert into agentq.ledger_entry (
        tenant, session_id, step_id, seq, name, state, due_at, attempts_max, timeout_s, priority, quarantine,
        state_from, args, join_step, branch, fan, waits_for, collect, approval, path, generation)
    select tenant, session_id, p_copy, seq, name, case when p_open is null then 'ready' else 'waiting' end, p_now,
           attempts_max, timeout_s, priority, quarantine, state_from, args, join_step, branch, fan,
           case when p_open is null then 0 else 1 end, collect, approval, path, p_by
      from agentq.ledger_entry where tenant = p_tenant and session_id = p_session and step_id = p_step;
    insert into agentq.branch (tenant, session_id, join_step, branch, child_session, state, result, failure)
    select tenant, session_id, p_copy, branch, child_session, case when branch = p_open then 'open' else state end,
           case when branch is distinct from p_open then result end,
           case when branch is distinct from p_open then failure end
      from agentq.branch where tenant = p_tenant and session_id = p_session and join_step = p_step;
    -- What ran beneath the join belongs to its copy now.
    update agentq.ledger_entry set join_step = p_copy
     where tenant = p_tenant and session_id = p_session and join_step = p_step and superseded is null;
end $$;


-- Open a branch again, and the joins around it as far as they no longer wait.
create or replace function agentq.reopen_branch(
    p_tenant text, p_session uuid, p_join uuid, p_branch int, p_by smallint, p_now timestamptz
) returns void language plpgsql as $$
declare j agentq.ledger_entry;
begin
    while p_join is not null loop
        select * into strict j from agentq.ledger_entry
         where tenant = p_tenant and session_id = p_session and step_id = p_join;
        if j.state in ('waiting', 'cancelled') then
            update agentq.branch set state = 'open', result = null, failure = null
             where tenant = p_tenant and session_id = p_session and join_step = p_join and branch = p_branch
               and state <> 'open';
            update agentq.ledger_entry l
               set state = 'waiting', settled_at = null,
                   waits_for = (select count(*) from agentq.branch b where b.tenant = p_tenant
                                   and b.session_id = p_session and b.join_step = p_join and b.state = 'open')
             where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_join;
            exit when j.state = 'waiting';
        else
            perform agentq.replace_step(p_tenant, p_session, p_join, gen_random_uuid(), p_branch, p_by, p_now);
        end if;
        p_join := j.join_step; p_branch := j.branch;
    end loop;
end $$;


-- Hold still what lives in a session, also what a settlement that is under way adds meanwhile.
create or replace function agentq.lock_live_steps(p_tenant text, p_session uuid) returns void language plpgsql as $$
declare v_locked uuid[] := '{}'; v_found uuid[];
begin
    loop
        select coalesce(array_agg(step_id order by step_id), '{}') into v_found from (
            select step_id from agentq.ledger_entry
             where tenant = p_tenant and session_id = p_session
               and state in ('ready', 'queued', 'running', 'waiting', 'held')
             order by step_id for no key update) as live;
        exit when v_found <@ v_locked;
        v_locked := v_found;
    end loop;
end $$;


-- The branch or the step in which a failed session stopped; neither when its end came from outside.
create or replace function agentq.where_it_stopped(
    p_tenant text, p_session uuid, out step_id uuid, out join_step uuid, out branch int
) language plpgsql as $$
#variable_conflict use_column
declare b record; tip record;
begin
    for b in
        select o.join_step, o.branch, o.child_session
          from agentq.branch o
          join agentq.ledger_entry j on j.tenant = o.tenant and j.session_id = o.session_id and j.step_id = o.join_step
         where o.tenant = p_tenant and o.session_id = p_session and o.state = 'failed'
           and j.superseded is null and j.state = 'cancelled' and not j.collect
         order by j.seq desc
    loop
        if b.child_session is not null then
            join_step := b.join_step; branch := b.branch;
            return;
        end if;
        select l.step_id, l.state into tip from agentq.ledger_entry l
         where l.tenant = p_tenant and l.session_id = p_session and l.superseded is null
           and l.join_step = b.join_step and l.branch = b.branch
         order by l.seq desc limit 1;
        if tip.state in ('dead', 'done') then
            step_id := tip.step_id;
            return;
        end if;  -- else a join within this branch failed it, and that one's branch is found too
    end loop;
    select l.step_id, l.state into tip from agentq.ledger_entry l
     where l.tenant = p_tenant and l.session_id = p_session and l.superseded is null and l.join_step is null
     order by l.seq desc limit 1;
    if tip.state in ('dead', 'done') then
        step_id := tip.step_id;
    end if;
end $$;


-- Ask people again what nobody had answered: a step that may go on only with an answer waits for it again, with the
-- same time to give it. What a call had asked, it asks by itself when its step runs.
create or replace function agentq.ask_again(p_tenant text, p_session uuid, p_by smallint, p_now timestamptz)
returns void language plpgsql as $$
declare w record; v_again uuid;
begin
    for w in
        select l.step_id as waits, a.* from agentq.ledger_entry l
          join agentq.approval a on a.tenant = l.tenant and a.approval_id = l.approval
         where l.tenant = p_tenant and l.session_id = p_session and l.superseded is null and l.state = 'ready'
           and a.kind = 'ask' and a.state in ('open', 'void')
         order by l.step_id
    loop
        v_again := gen_random_uuid();
        insert into agentq.approval (
            tenant, approval_id, session_id, step_id, fence, generation, kind, name, args, args_hash, question, details,
            groups, channels, asked_at, deadline_at, remind_at)
        values (p_tenant, v_again, p_session, w.waits, w.fence, p_by, w.kind, w.name, w.args, w.args_hash, w.question,
                w.details, w.groups, w.channels, p_now, p_now + (w.deadline_at - w.asked_at),
                case when cardinality(w.channels) > 0 then p_now + (w.deadline_at - w.asked_at) / 2 end);
        perform agentq.tell(p_tenant, v_again, 'asked', p_now);
        update agentq.ledger_entry set state = 'waiting', approval = v_again
         where tenant = p_tenant and session_id = p_session and step_id = w.waits;
    end loop;
    perform agentq.void_approvals(p_tenant, p_session, p_now);
end $$;


-- Let one session go on: from a step, from the branch that a child of it ends, or from where it stopped.
-- Returns the sessions that go on, this one first, children that were ended with it after it.
create or replace function agentq.go_on(
    p_tenant text, p_session uuid, p_step uuid, p_copy uuid, p_join uuid, p_branch int, p_deadline_s double precision,
    p_now timestamptz
) returns uuid[] language plpgsql as $$
declare
    s agentq.session; e agentq.ledger_entry; c record; stopped record; v_by smallint;
    v_gone_on uuid[] := array[p_session];
begin
    select * into strict s from agentq.session
     where tenant = p_tenant and session_id = p_session for no key update;
    perform agentq.lock_live_steps(p_tenant, p_session);
    v_by := s.generation + 1;
    select w.step_id, w.join_step, w.branch into stopped from agentq.where_it_stopped(p_tenant, p_session) w
     where s.state = 'failed';
    update agentq.session
       set state = 'running', result = null, failure = null, hold = null, ended_at = null, generation = v_by,
           deadline_at = case when p_deadline_s is null then deadline_at
                              when p_deadline_s > 0 then p_now + make_interval(secs => p_deadline_s) end
     where tenant = p_tenant and session_id = p_session;
    perform agentq.reopen_branch(p_tenant, p_session, p_join, p_branch, v_by, p_now);
    -- The step that was asked for, and the one that had failed the session if that does not come after it.
    foreach p_step in array array[p_step, stopped.step_id] loop
        select * into e from agentq.ledger_entry
         where tenant = p_tenant and session_id = p_session and step_id = p_step and superseded is null;
        if found then
            perform agentq.replace_step(p_tenant, p_session, p_step, coalesce(p_copy, gen_random_uuid()), null, v_by,
                                        p_now);
            perform agentq.reopen_branch(p_tenant, p_session, e.join_step, e.branch, v_by, p_now);
            p_copy := null;
        end if;
    end loop;
    if exists (select from agentq.ledger_entry where tenant = p_tenant and session_id = p_session
                  and step_id = stopped.join_step and superseded is null) then
        perform agentq.reopen_branch(p_tenant, p_session, stopped.join_step, stopped.branch, v_by, p_now);
    end if;

    -- What was cancelled with the session goes on where its branch is open; held is what a pause had stopped.
    with recursive places as (
        select step_id, fan, state from agentq.ledger_entry
         where tenant = p_tenant and session_id = p_session and superseded is null and join_step is null
           and state in ('waiting', 'cancelled', 'held')
        union
        select l.step_id, l.fan, l.state from places p
          join agentq.ledger_entry l on l.join_step = p.step_id
          join agentq.branch b on b.tenant = l.tenant and b.session_id = l.session_id and b.join_step = l.join_step
                              and b.branch = l.branch and b.state = 'open'
         where l.tenant = p_tenant and l.session_id = p_session and l.superseded is null
           and l.state in ('waiting', 'cancelled', 'held')
    )
    update agentq.ledger_entry l
       set state = case when l.fan > 0 and l.waits_for > 0 then 'waiting' else 'ready' end, settled_at = null,
           unserved = null
      from places p
     where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p.step_id
       and l.state in ('cancelled', 'held');

    perform agentq.ask_again(p_tenant, p_session, v_by, p_now);

    -- Children that ended while nobody waited for them.
    for c in
        select b.join_step, b.branch, k.session_id, k.state, k.result
          from agentq.branch b
          join agentq.ledger_entry j on j.tenant = b.tenant and j.session_id = b.session_id and j.step_id = b.join_step
          join agentq.session k on k.tenant = b.tenant and k.session_id = b.child_session
         where b.tenant = p_tenant and b.session_id = p_session and b.state = 'open'
           and j.superseded is null and j.state = 'waiting' and k.state in ('done', 'failed', 'cancelled')
         order by k.session_id
    loop
        if c.state = 'done' then
            perform agentq.await_admission(p_tenant, agentq.finish_branch(
                p_tenant, p_session, c.join_step, c.branch, true, c.result, null, p_now));
        else
            v_gone_on := v_gone_on
                || agentq.go_on(p_tenant, c.session_id, null, null, null, null, p_deadline_s, p_now);
        end if;
    end loop;
    if s.concurrency_key is not null and (s.state not in ('running', 'paused') or s.hold ->> 'kind' = 'turn') then
        perform agentq.wait_for_turn(p_tenant, p_session, s.concurrency_key, p_now);
    end if;
    return v_gone_on;
end $$;


-- The branch of a parent's join that this child closes, or would close if the parent could go on; none when the
-- parent went on without it.
create or replace function agentq.awaited_branch(
    p_tenant text, p_parent uuid, p_child uuid, out join_step uuid, out branch int, out join_state text
) language sql stable as $$
    select b.join_step, b.branch, j.state from agentq.branch b
      join agentq.ledger_entry j on j.tenant = b.tenant and j.session_id = b.session_id and j.step_id = b.join_step
     where b.tenant = p_tenant and b.session_id = p_parent and b.child_session = p_child
       and j.superseded is null and j.state in ('waiting', 'cancelled')
$$;


-- Whether a tenant may use the agents of a session, and of those above and beneath it that would go on with it.
create or replace function agentq.agents_allowed(p_tenant text, p_session uuid) returns boolean language sql stable as $$
    with recursive above as (
        select session_id, parent_session, agent from agentq.session where tenant = p_tenant and session_id = p_session
        union all
        select s.session_id, s.parent_session, s.agent from agentq.session s join above a on s.session_id = a.parent_session
         where s.tenant = p_tenant and s.state in ('failed', 'cancelled')
    ), beneath as (
        select session_id, agent from above where session_id = p_session
        union all
        select s.session_id, s.agent from agentq.session s join beneath b on s.parent_session = b.session_id
         where s.tenant = p_tenant and s.state <> 'done'
    )
    select coalesce((select bool_and(f.agent = any (t.agents))
                       from (select agent from above union all select agent from beneath) f), true)
      from agentq.tenant t where t.name = p_tenant
$$;


-- Let a session go on from a step (`p_step`; null: from where it stopped), in a new generation.
--
-- `p_generation` is the generation that the caller saw: of several who reopen at once, one wins.
-- `p_copy` is the id that the step gets. `p_state` replaces the state that it begins from, as the checkpoint `p_edit`.
-- `p_deadline_s`: null keeps the deadline, 0 takes it away, else that many seconds from now, children included.
-- outcome: reopened | missing | moved | live | no_step | superseded | parent_ended | deadline_over | agent_refused
-- `sessions`: all that go on, this one first. Parents that failed with it are among them.
create or replace function agentq.reopen_session(
    p_tenant text, p_session uuid, p_step uuid, p_copy uuid, p_generation int, p_state bytea, p_edit uuid,
    p_deadline_s double precision
) returns table (outcome text, generation int, sessions uuid[]) language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    s agentq.session; c agentq.session; p agentq.session; e agentq.ledger_entry; b record;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    -- One reopening at a time: it goes up to parents and from there down to their children.
    perform pg_advisory_xact_lock(1634166383, hashtext(p_tenant));
    select * into s from agentq.session x where x.tenant = p_tenant and x.session_id = p_session for no key update;
    generation := s.generation;
    if not found then outcome := 'missing'; return next; return; end if;
    if s.generation <> p_generation then outcome := 'moved'; return next; return; end if;
    if p_step is not null then
        select * into e from agentq.ledger_entry l
         where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step;
        outcome := case when not found then 'no_step' when e.superseded is not null then 'superseded' end;
    elsif s.state not in ('failed', 'cancelled') then
        outcome := case s.state when 'done' then 'no_step' else 'live' end;
    end if;
    if outcome is not null then return next; return; end if;

    -- Every session above that failed with it must be able to go on too.
    c := s;
    loop
        if c.deadline_at <= v_now and p_deadline_s is null then outcome := 'deadline_over'; return next; return; end if;
        exit when c.parent_session is null;
        select * into strict p from agentq.session x
         where x.tenant = p_tenant and x.session_id = c.parent_session for no key update;
        select * into b from agentq.awaited_branch(p_tenant, p.session_id, c.session_id);
        if p.state <> 'failed' then
            -- Without a join that waits or has run, the relay would end the child at once.
            exit when p.state <> 'cancelled' and (b.join_state = 'waiting' or exists (
                select from agentq.ledger_entry j where j.tenant = p_tenant and j.session_id = p.session_id
                   and j.step_id = c.parent_join and j.state <> 'cancelled'));
            outcome := 'parent_ended'; return next; return;
        end if;
        if b.join_step is null then outcome := 'parent_ended'; return next; return; end if;
        c := p;
    end loop;
    if not agentq.agents_allowed(p_tenant, p_session) then outcome := 'agent_refused'; return next; return; end if;

    outcome := 'reopened'; generation := s.generation + 1;
    if p_state is not null then
        insert into agentq.checkpoint (tenant, session_id, step_id, kind, state, agent_version)
        values (p_tenant, p_session, p_edit, 'full', p_state, s.agent_version);
    end if;
    sessions := agentq.go_on(p_tenant, p_session, p_step, p_copy, null, null, p_deadline_s, v_now);
    if p_state is not null then
        update agentq.ledger_entry l set state_from = p_edit
         where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_copy;
    end if;
    c := s;
    while c.parent_session is not null loop
        select * into strict p from agentq.session x where x.tenant = p_tenant and x.session_id = c.parent_session;
        select * into b from agentq.awaited_branch(p_tenant, p.session_id, c.session_id);
        exit when p.state = 'done' or b.join_step is null;  -- it went on without this child
        -- The join may be a copy of the one that this child was spawned for.
        update agentq.session x set parent_join = b.join_step
         where x.tenant = p_tenant and x.session_id = c.session_id and x.parent_join <> b.join_step;
        if p.state in ('running', 'paused') then
            perform agentq.reopen_branch(p_tenant, p.session_id, b.join_step, b.branch, p.generation, v_now);
            exit;
        end if;
        sessions := sessions
            || agentq.go_on(p_tenant, p.session_id, null, null, b.join_step, b.branch, p_deadline_s, v_now);
        c := p;
    end loop;
    return next;
end $$;


-- Begin a new session as one of another's steps: with the state before it (`p_input`, which becomes its input), its
-- arguments, what its branches came to, and the history until then. It belongs to no parent and has no key.
--
-- Its effects have keys of their own. With `p_dry` it keeps the step's path instead, so that what the other session
-- recorded is recalled, and calls nothing that is not recorded.
-- It is a new session, and begins where a tenant takes one.
-- outcome: forked | missing | no_step | superseded | agent_refused | tenant_closed
create or replace function agentq.fork_session(
    p_tenant text, p_session uuid, p_step uuid, p_fork uuid, p_copy uuid, p_input bytea, p_hash bytea, p_dry boolean,
    p_deadline_s double precision
) returns text language plpgsql as $$
declare v_now timestamptz := agentq.now(); s agentq.session; e agentq.ledger_entry;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select * into s from agentq.session where tenant = p_tenant and session_id = p_session;
    if not found then return 'missing'; end if;
    select * into e from agentq.ledger_entry
     where tenant = p_tenant and session_id = p_session and step_id = p_step;
    if not found then return 'no_step'; end if;
    if e.superseded is not null then return 'superseded'; end if;
    if exists (select from agentq.tenant where name = p_tenant and not s.agent = any (agents)) then return 'agent_refused'; end if;
    if exists (select from agentq.tenant where name = p_tenant and state = 'draining') then return 'tenant_closed'; end if;
    insert into agentq.session (tenant, session_id, agent, agent_version, input_version, input, input_hash, priority,
                                deadline_at, created_at, forked_from, dry_effects)
    values (p_tenant, p_fork, s.agent, s.agent_version,
            case when e.state_from is null then s.input_version
                 else (select c.agent_version from agentq.checkpoint c where c.tenant = p_tenant
                        and c.session_id = p_session and c.step_id = e.state_from) end,
            p_input, p_hash, s.priority, v_now + make_interval(secs => p_deadline_s), v_now, p_session, p_dry);
    insert into agentq.ledger_entry (tenant, session_id, step_id, seq, name, state, due_at, attempts_max, timeout_s,
                                     priority, args, fan, collect, approval, path)
    values (p_tenant, p_fork, p_copy, e.seq, e.name, 'ready', v_now, e.attempts_max, e.timeout_s, s.priority, e.args,
            e.fan, e.collect, e.approval, case when p_dry then e.path else agentq.first_place(p_fork) end);
    insert into agentq.branch (tenant, session_id, join_step, branch, state, result, failure)
    select tenant, p_fork, p_copy, branch, state, result, failure
      from agentq.branch where tenant = p_tenant and session_id = p_session and join_step = p_step;
    insert into agentq.message (tenant, session_id, seq, step_id, body, written_by, saved_at)
    select m.tenant, p_fork, m.seq, m.step_id, m.body, m.written_by, m.saved_at
      from agentq.message m
     where m.tenant = p_tenant and m.session_id = p_session
       and m.step_id not in (select agentq.from_step_on(p_tenant, p_session, p_step))
       and m.step_id not in (select l.step_id from agentq.ledger_entry l
                              where l.tenant = p_tenant and l.session_id = p_session and l.superseded is not null);
    perform agentq.ask_again(p_tenant, p_fork, 0::smallint, v_now);
    return 'forked';
end $$;
