-- Approvals: what waits for a person, and what decides it.
-- How functions are written and replaced: see ledger.sql.
--
-- Whoever decides an approval holds its session's row first, as everybody does who changes what a
-- session waits for: so a decision, an expiry and a cancellation come one after the other.


-- The asks of a settlement, written with it. Who is told is told through the outbox of notices.
-- A call that asks anew has other arguments than before: what it asked then is void.
create or replace function agentq.ask(
    p_tenant text, p_session uuid, p_step uuid, p_fence int, p_asks jsonb, p_now timestamptz
) returns void language plpgsql as $$
begin
    update agentq.approval a set state = 'void', decided_at = p_now
     where a.tenant = p_tenant and a.session_id = p_session and a.step_id = p_step and a.state = 'open';
    insert into agentq.approval (
        tenant, approval_id, session_id, step_id, fence, generation, kind, name, effect_key, args, args_hash, question,
        details, groups, channels, asked_at, deadline_at, remind_at)
    select p_tenant, n.id, p_session, n.step, p_fence, agentq.generation_of(p_tenant, p_session), n.kind, n.name, n.key,
           decode(n.args, 'base64'), decode(n.hash, 'base64'), n.question, decode(n.details, 'base64'),
           n.groups, coalesce(n.channels, '{}'), p_now, p_now + make_interval(secs => n.within_s),
           case when cardinality(n.channels) > 0 then p_now + make_interval(secs => n.within_s / 2) end
      from jsonb_to_recordset(p_asks) as n (
           id uuid, step uuid, kind text, name text, key text, args text, hash text, question text, details text,
           groups text[], channels text[], within_s double precision);
    perform agentq.tell(p_tenant, n.id, 'asked', p_now) from jsonb_to_recordset(p_asks) as n (id uuid);
    perform agentq.look_at(p_tenant, p_session);
end $$;


-- A notice for each channel of an approval.
create or replace function agentq.tell(p_tenant text, p_approval uuid, p_kind text, p_now timestamptz)
returns void language sql as $$
    insert into agentq.notice (tenant, approval_id, kind, channel, due_at)
    select a.tenant, a.approval_id, p_kind, c.channel, p_now
      from agentq.approval a, unnest(a.channels) as c (channel)
     where a.tenant = p_tenant and a.approval_id = p_approval
$$;


-- How often the session has been replayed by now.
create or replace function agentq.generation_of(p_tenant text, p_session uuid) returns int language sql stable as $$
    select generation::int from agentq.session where tenant = p_tenant and session_id = p_session
$$;


-- Whether a call may go out. Asked by the attempt that holds the fence, before the effect is claimed.
-- outcome: recorded | granted | denied | expired | open | ask | superseded
-- An approval is bound to the effect's key, the hash of the arguments and the step; a replay runs its own copy of it.
-- What policy grants in advance is written down as any other grant.
create or replace function agentq.permit_effect(
    p_tenant text, p_session uuid, p_step uuid, p_fence int, p_token bigint, p_key text, p_hash bytea, p_name text,
    p_args bytea, p_question text, p_auto boolean
) returns table (
    outcome text, approval uuid, edited bytea, edited_hash bytea, decided_by text, comment text,
    deadline_at timestamptz, asked_in uuid
) language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    v_recorded boolean; v_policy text; v_generation int; a agentq.approval;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    v_generation := agentq.generation_of(p_tenant, p_session);  -- not above: no row is seen before the tenant is named
    if not exists (select from agentq.ledger_entry l
                    where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
                      and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token) then
        outcome := 'superseded';
        return next; return;
    end if;
    v_recorded := exists (select from agentq.effect e
                           where e.tenant = p_tenant and e.effect_key = p_key and e.state = 'done');
    -- What is recorded is only recalled, whoever allowed it; the edits tell which arguments it was made with.
    select * into a from agentq.approval x
     where x.tenant = p_tenant and x.effect_key = p_key and x.args_hash = p_hash and x.state <> 'void'
       and (v_recorded and x.state = 'granted' or x.session_id = p_session and x.step_id = p_step)
     order by x.state = 'granted' desc, x.asked_at desc limit 1;
    if not found and not v_recorded then
        v_policy := case when p_auto then 'policy: auto of ' || p_name
                         when p_name = any (select unnest(t.preapproved) from agentq.tenant t where t.name = p_tenant)
                         then 'policy: tenant ' || p_tenant end;
        if v_policy is null then
            outcome := 'ask';
            return next; return;
        end if;
        insert into agentq.approval (
            tenant, approval_id, session_id, step_id, fence, generation, kind, name, effect_key, args, args_hash,
            question, groups, state, asked_at, deadline_at, decided_at, decided_by, decided_via)
        values (p_tenant, gen_random_uuid(), p_session, p_step, p_fence, v_generation, 'effect', p_name, p_key, p_args,
                p_hash, p_question, '{policy}', 'granted', v_now, v_now, v_now, v_policy, 'policy')
        returning * into a;
    end if;
    outcome := case when v_recorded then 'recorded' else a.state end;
    approval := a.approval_id; edited := a.edited; edited_hash := a.edited_hash; decided_by := a.decided_by;
    comment := a.comment; deadline_at := a.deadline_at; asked_in := a.session_id;
    return next;
end $$;


-- Let a step go on that waited for this approval. It passes admission like any other that is due.
create or replace function agentq.release_waiting(p_tenant text, p_approval uuid, p_args bytea, p_now timestamptz)
returns void language sql as $$
    update agentq.ledger_entry e
       set state = case s.state when 'paused' then 'held' else 'ready' end, due_at = p_now,
           args = coalesce(p_args, e.args)
      from agentq.approval a, agentq.session s
     where a.tenant = p_tenant and a.approval_id = p_approval and s.tenant = p_tenant and s.session_id = a.session_id
       and e.tenant = p_tenant and e.session_id = a.session_id and e.step_id = a.step_id
       and e.approval = a.approval_id and e.state = 'waiting' and e.waits_for = 0
$$;


-- Grant or deny. The deadline is looked at in the update that decides, on the clock of the moment:
-- a grant that comes after it finds the approval expired, whether or not the relay has noticed.
-- outcome: decided | late | void | taken | not_allowed | unknown
-- taken: somebody was quicker; state, decided_by and decided_at say who.
-- `p_args`: the edits once more, as the step that waits keeps its arguments.
create or replace function agentq.decide_approval(
    p_tenant text, p_approval uuid, p_verdict text, p_by text, p_via text, p_groups text[], p_comment text,
    p_edited bytea, p_edited_hash bytea, p_diff bytea, p_args bytea default null
) returns table (outcome text, state text, decided_by text, decided_at timestamptz) language plpgsql as $$
#variable_conflict use_column
declare v_session uuid; v_live boolean; v_now timestamptz; a agentq.approval;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select x.session_id into v_session from agentq.approval x where x.tenant = p_tenant and x.approval_id = p_approval;
    if not found then
        outcome := 'unknown';
        return next; return;
    end if;
    perform from agentq.session s where s.tenant = p_tenant and s.session_id = v_session for no key update;
    v_now := agentq.now();  -- not before the lock is held: waiting for it must not stretch the deadline
    v_live := agentq.still_waits(p_tenant, p_approval);
    update agentq.approval x
       set state = case when not v_live then 'void' when v_now > x.deadline_at then 'expired' else p_verdict end,
           decided_at = v_now,
           decided_by = case when v_live and v_now <= x.deadline_at then p_by end,
           decided_via = case when v_live and v_now <= x.deadline_at then p_via end,
           comment = case when v_live and v_now <= x.deadline_at then p_comment end,
           edited = case when v_live and v_now <= x.deadline_at and p_verdict = 'granted' then p_edited end,
           edited_hash = case when v_live and v_now <= x.deadline_at and p_verdict = 'granted' then p_edited_hash end,
           diff = case when v_live and v_now <= x.deadline_at and p_verdict = 'granted' then p_diff end
     where x.tenant = p_tenant and x.approval_id = p_approval and x.state = 'open'
       and (p_groups is null or x.groups && p_groups)
    returning x.* into a;
    if not found then
        select x.* into strict a from agentq.approval x where x.tenant = p_tenant and x.approval_id = p_approval;
        outcome := case when a.state = 'open' then 'not_allowed' else 'taken' end;
        state := a.state; decided_by := a.decided_by; decided_at := a.decided_at;
        return next; return;
    end if;
    if a.state <> 'void' then
        perform agentq.release_waiting(p_tenant, p_approval, case when a.kind = 'ask' then coalesce(p_args, a.edited) end,
                                        v_now);
        perform agentq.tell(p_tenant, p_approval, 'decided', v_now);
    end if;
    outcome := case a.state when 'void' then 'void' when 'expired' then 'late' else 'decided' end;
    state := a.state; decided_by := a.decided_by; decided_at := a.decided_at;
    return next;
end $$;


-- Whether anything still waits for an approval: its session lives, and so does the step, for this very approval.
create or replace function agentq.still_waits(p_tenant text, p_approval uuid) returns boolean language sql stable as $$
    select exists (
        select from agentq.approval a
          join agentq.session s on s.tenant = a.tenant and s.session_id = a.session_id
          join agentq.ledger_entry e on e.tenant = a.tenant and e.session_id = a.session_id and e.step_id = a.step_id
         where a.tenant = p_tenant and a.approval_id = p_approval and s.state in ('running', 'paused')
           and e.approval = a.approval_id and e.state in ('waiting', 'held', 'ready', 'queued', 'running'))
$$;


-- Void what nothing waits for any more: after a cancellation, a given up branch, a replay.
create or replace function agentq.void_approvals(p_tenant text, p_session uuid, p_now timestamptz)
returns void language sql as $$
    update agentq.approval a set state = 'void', decided_at = p_now
     where a.tenant = p_tenant and a.session_id = p_session and a.state = 'open'
       and not agentq.still_waits(p_tenant, a.approval_id)
$$;


-- Expire what nobody decided in time; its steps go on and are told so.
create or replace function agentq.expire_approvals(p_max int)
returns table (tenant text, session_id uuid, approval_id uuid, state text) language plpgsql as $$
#variable_conflict use_column
declare v_now timestamptz := agentq.now(); v_state text; a record;
begin
    perform set_config('agentq.tenant', '*', true);
    for a in
        select x.tenant, x.session_id, x.approval_id from agentq.approval x
         where x.state = 'open' and x.deadline_at < v_now
         order by x.deadline_at limit p_max
    loop
        perform from agentq.session s where s.tenant = a.tenant and s.session_id = a.session_id
            for no key update skip locked;
        if not found then continue; end if;
        update agentq.approval x
           set state = case when agentq.still_waits(a.tenant, a.approval_id) then 'expired' else 'void' end,
               decided_at = v_now
         where x.tenant = a.tenant and x.approval_id = a.approval_id and x.state = 'open' and x.deadline_at < v_now
        returning x.state into v_state;
        if not found then continue; end if;
        if v_state = 'expired' then
            perform agentq.release_waiting(a.tenant, a.approval_id, null, v_now);
            perform agentq.tell(a.tenant, a.approval_id, 'decided', v_now);
        end if;
        return query select a.tenant, a.session_id, a.approval_id, v_state;
    end loop;
end $$;


-- Remind at half of the time, and once more when a tenth of it is left.
create or replace function agentq.remind_approvals(p_max int) returns int language plpgsql as $$
declare v_now timestamptz := agentq.now(); v_count int := 0; a record;
begin
    perform set_config('agentq.tenant', '*', true);
    for a in
        select x.tenant, x.approval_id, x.deadline_at - (x.deadline_at - x.asked_at) / 10 as last_at
          from agentq.approval x
         where x.state = 'open' and x.remind_at <= v_now and x.deadline_at > v_now
         order by x.remind_at limit p_max for update skip locked
    loop
        update agentq.approval x set remind_at = case when a.last_at > v_now then a.last_at end
         where x.tenant = a.tenant and x.approval_id = a.approval_id;
        perform agentq.tell(a.tenant, a.approval_id, 'reminder', v_now);
        v_count := v_count + 1;
    end loop;
    return v_count;
end $$;


-- Take notices to send. Each is due again after the lease, unless it is settled before: a sender that
-- dies in the middle leaves it to the next, and the receiver tells a repeat by its id.
create or replace function agentq.take_notices(p_max int, p_lease_s double precision)
returns table (
    tenant text, notice_id uuid, kind text, channel text, attempts int, approval_id uuid, session_id uuid, agent text,
    name text, question text, details bytea, groups text[], state text, asked_at timestamptz, deadline_at timestamptz,
    decided_by text, effect_key text, args_hash bytea
) language plpgsql as $$
#variable_conflict use_column
declare v_now timestamptz := agentq.now();
begin
    perform set_config('agentq.tenant', '*', true);
    return query
        with due as materialized (
            select n.tenant, n.notice_id from agentq.notice n
             where n.state = 'due' and n.due_at <= v_now order by n.due_at limit p_max for update skip locked),
        taken as (
            update agentq.notice n set attempts = n.attempts + 1, due_at = v_now + make_interval(secs => p_lease_s)
              from due where n.tenant = due.tenant and n.notice_id = due.notice_id
            returning n.*)
        select n.tenant, n.notice_id, n.kind, n.channel, n.attempts, a.approval_id, a.session_id, s.agent, a.name,
               a.question, a.details, a.groups, a.state, a.asked_at, a.deadline_at, a.decided_by,
               a.effect_key, a.args_hash
          from taken n
          join agentq.approval a on a.tenant = n.tenant and a.approval_id = n.approval_id
          join agentq.session s on s.tenant = a.tenant and s.session_id = a.session_id
        union all
        select n.tenant, n.notice_id, n.kind, n.channel, n.attempts, n.anomaly_id, o.session_id, o.agent, o.measure, o.why,
               null::bytea, '{}'::text[], o.state, o.found_at, o.found_at, null::text,
               null::text, null::bytea
          from taken n
          join agentq.anomaly o on o.tenant = n.tenant and o.anomaly_id = n.anomaly_id;
end $$;


-- What became of a notice: sent, failed for good, or due again.
create or replace function agentq.settle_notice(
    p_tenant text, p_notice uuid, p_attempt int, p_state text, p_delay_s double precision, p_failure text
) returns boolean language plpgsql as $$
begin
    perform set_config('agentq.tenant', p_tenant, true);
    update agentq.notice
       set state = p_state, failure = p_failure, sent_at = case when p_state = 'sent' then agentq.now() end,
           due_at = agentq.now() + make_interval(secs => coalesce(p_delay_s, 0))
     where tenant = p_tenant and notice_id = p_notice and state = 'due' and attempts = p_attempt;
    return found;
end $$;
