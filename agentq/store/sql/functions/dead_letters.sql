-- Dead letters: buried in the transaction of the verdict itself, brought back by redrives, and what
-- arrived on a queue and was never understood.
--
-- A session's row is locked before its letters, as before its entries.

-- A failure beside those before it: the last twenty, their messages cut.
create or replace function agentq.remember_failure(p_past jsonb, p_failure jsonb, p_now timestamptz)
returns jsonb language sql stable as $$
    select case when jsonb_array_length(past) > 20 then past - 0 else past end
      from (select coalesce(p_past, '[]') || jsonb_build_array(p_failure - 'cause' - 'cause_text' - 'place'
                   || jsonb_build_object('at', p_now, 'message',
                        -- A sealed text cannot be cut: it is kept whole, or not at all.
                        case when p_failure ->> 'message' not like 'enc:v1:%' then left(p_failure ->> 'message', 300)
                             when length(p_failure ->> 'message') < 1500 then p_failure ->> 'message'
                             else '(too long to be repeated here)' end))) f (past)
$$;


-- Bury a step that is dead: the letter that a person, a redrive or a policy works with.
-- Called after the session has been told. Where it goes on (a join that takes failed branches as values),
-- the letter is resolved from the beginning: there is nothing to bring back.
-- A failure that says no cause (a lost worker's has no frame to look at) is told apart by its step.
create or replace function agentq.bury(p_tenant text, p_session uuid, p_step uuid, p_now timestamptz)
returns void language plpgsql as $$
declare
    e agentq.ledger_entry; s agentq.session; v_place text;
begin
    select * into strict e from agentq.ledger_entry
     where tenant = p_tenant and session_id = p_session and step_id = p_step;
    select * into strict s from agentq.session where tenant = p_tenant and session_id = p_session;
    v_place := s.agent || '.' || e.name;
    insert into agentq.dead_letter (
        tenant, letter_id, session_id, step_id, generation, agent, agent_version, step, seq, class, cause, cause_text,
        dependency, failure, attempts, attempt, crashes, state_from, cost_micros, effects_pending, effects_unknown,
        state, announced, note, died_at, changed_at)
    select p_tenant, gen_random_uuid(), p_session, p_step, s.generation, s.agent,
           s.agent_version, e.name, e.seq,
           e.failure ->> 'kind',
           coalesce(e.failure ->> 'cause', left(md5(concat_ws(E'\n', e.failure ->> 'kind', e.failure ->> 'type', v_place)), 12)),
           coalesce(e.failure ->> 'cause_text', concat(e.failure ->> 'type', ' in ', v_place)),
           e.failure ->> 'dependency', e.failure - 'cause' - 'cause_text', coalesce(e.failures, '[]'), e.attempt, e.crashes, e.state_from,
           (select coalesce(sum(c.cost_micros), 0) from agentq.checkpoint c
             where c.tenant = p_tenant and c.session_id = p_session),
           f.pending, f.unknown,
           case s.state when 'failed' then 'open' else 'resolved' end, s.state <> 'failed',
           case s.state when 'failed' then null when 'cancelled' then 'its session was cancelled'
                        else 'its join takes failed branches as values' end, p_now, p_now
      from (select count(*) filter (where state = 'pending') as pending, count(*) filter (where state = 'unknown') as unknown
              from agentq.effect where tenant = p_tenant and session_id = p_session) f
    on conflict on constraint dead_letter_death do nothing;
end $$;


-- A session ended: what became of the letters that it was brought back for.
-- Done, however it came to run again: nothing is left to do. Otherwise that redrive has failed, and the
-- new death has a letter of its own.
create or replace function agentq.close_letters(p_tenant text, p_session uuid, p_state text, p_now timestamptz)
returns void language sql as $$
    update agentq.dead_letter
       set state = case p_state when 'done' then 'resolved' else 'redriven' end, changed_at = p_now, announced = true
     where tenant = p_tenant and session_id = p_session
       and (state = 'redriving' or state = 'open' and p_state = 'done')
$$;


-- The letters that a selection names: one place where filters are read, for lists, groups, plans,
-- redrives and exports alike. Plain SQL, so that it is planned as part of the query around it.
create or replace function agentq.letters(p_selection jsonb) returns setof agentq.dead_letter
language sql stable as $$
    select d.* from agentq.dead_letter d
     where (p_selection ->> 'state' is null or d.state = p_selection ->> 'state')
       and (p_selection ->> 'tenant' is null or d.tenant = p_selection ->> 'tenant')
       and (p_selection ->> 'cause' is null
            -- 'g' follows every digit of a fingerprint.
            or d.cause >= p_selection ->> 'cause' and d.cause < (p_selection ->> 'cause') || 'g')
       and (p_selection ->> 'agent' is null or d.agent = p_selection ->> 'agent')
       and (p_selection ->> 'version' is null or d.agent_version = (p_selection ->> 'version')::int)
       and (p_selection ->> 'step' is null or d.step = p_selection ->> 'step')
       and (p_selection ->> 'class' is null or d.class = p_selection ->> 'class')
       and (p_selection ->> 'dependency' is null or d.dependency = p_selection ->> 'dependency')
       and (p_selection ->> 'generation' is null or d.generation = (p_selection ->> 'generation')::int)
       and (p_selection ->> 'since' is null or d.died_at >= (p_selection ->> 'since')::timestamptz)
       and (p_selection ->> 'before' is null or d.died_at <= (p_selection ->> 'before')::timestamptz)
       and (p_selection ->> 'session' is null or d.session_id = (p_selection ->> 'session')::uuid)
       and (p_selection ->> 'job' is null or d.job_id = (p_selection ->> 'job')::uuid)
       and (p_selection -> 'letters' is null
            or d.letter_id in (select l::uuid from jsonb_array_elements_text(p_selection -> 'letters') l))
$$;


-- Letters without a message, now about to be sent: at most so many, each tenant's oldest first.
-- Marked before they are sent: one that is lost on the way is a notice lost, and the row decides.
create or replace function agentq.announce_letters(p_max int)
returns table (tenant text, letter_id uuid, session_id uuid, step_id uuid, agent text, step text, class text, cause text,
               cause_text text, generation int, died_at timestamptz) language plpgsql as $$
#variable_conflict use_column
begin
    perform set_config('agentq.tenant', '*', true), set_config('synchronous_commit', 'off', true);
    return query
        with unsent as materialized (
            select d.tenant, d.letter_id from agentq.dead_letter d
             where not d.announced order by d.tenant limit p_max for update skip locked)
        update agentq.dead_letter d set announced = true from unsent u
         where d.tenant = u.tenant and d.letter_id = u.letter_id
        returning d.tenant, d.letter_id, d.session_id, d.step_id, d.agent || '@' || d.agent_version, d.step, d.class,
                  d.cause, d.cause_text, d.generation, d.died_at;
end $$;


-- How many open letters each tenant has, counted no further than `p_most`: hops from tenant to tenant,
-- so that ten tenants with a million letters cost ten times `p_most` index entries.
create or replace function agentq.open_letters(p_most int) returns table (tenant text, open bigint)
language sql stable as $$
    with recursive hop as (
        (select d.tenant from agentq.dead_letter d where d.state = 'open' order by d.tenant limit 1)
        union all
        select (select d.tenant from agentq.dead_letter d
                 where d.state = 'open' and d.tenant > hop.tenant order by d.tenant limit 1)
          from hop where hop.tenant is not null
    )
    select hop.tenant, (select count(*) from (select from agentq.dead_letter d
                         where d.state = 'open' and d.tenant = hop.tenant limit p_most) n)
      from hop where hop.tenant is not null
$$;


-- Keep what arrived on a queue and was not understood. The same again is counted, and of a flood only
-- the newest thousand of a queue are kept.
create or replace function agentq.keep_poison(p_tenant text, p_queue text, p_reason text, p_digest bytea, p_body bytea,
                                              p_size int)
returns bigint language plpgsql as $$
declare v_id bigint;
begin
    perform set_config('agentq.tenant', '*', true);
    insert into agentq.poison_message (tenant, queue, reason, digest, body, size_bytes)
    values (p_tenant, p_queue, p_reason, p_digest, p_body, p_size)
    on conflict on constraint poison_message_digest
       do update set times = poison_message.times + 1, last_at = agentq.now(), reason = p_reason
    returning poison_id into v_id;
    if v_id % 100 = 0 then
        delete from agentq.poison_message p where p.tenant = p_tenant and p.queue = p_queue and p.poison_id <= (
            select o.poison_id from agentq.poison_message o where o.tenant = p_tenant and o.queue = p_queue
             order by o.poison_id desc offset 1000 limit 1);
    end if;
    return v_id;
end $$;


-- Discard open letters: kept as rows, no longer in anybody's way. How many; fewer than `p_max`: that was all.
create or replace function agentq.discard_letters(p_selection jsonb, p_operator text, p_reason text, p_max int)
returns int language plpgsql set plan_cache_mode = 'force_custom_plan' as $$
declare v_count int;
begin
    perform set_config('agentq.tenant', '*', true);
    with picked as materialized (
        select d.tenant, d.letter_id from agentq.letters(p_selection || '{"state": "open"}') d limit p_max)
    , held as materialized (
        select d.tenant, d.letter_id from agentq.dead_letter d join picked using (tenant, letter_id)
         where d.state = 'open' for update of d skip locked)
    update agentq.dead_letter d
       set state = 'discarded', changed_by = p_operator, note = p_reason, changed_at = agentq.now(), announced = true
      from held h where d.tenant = h.tenant and d.letter_id = h.letter_id;
    get diagnostics v_count = row_count;
    return v_count;
end $$;


-- Say of a session's effects whose outcome nobody knew what a person found on the other side.
-- done: it happened, and a repeat gets null as its result; not-done, again: the call goes out once more.
create or replace function agentq.decide_effects(p_tenant text, p_session uuid, p_decision text, p_operator text)
returns int language plpgsql as $$
declare v_count int;
begin
    update agentq.effect
       set state = case p_decision when 'done' then 'done' else 'failed' end,
           result = case p_decision when 'done' then 'null'::bytea end,
           failure = failure || jsonb_build_object('decided', p_decision, 'by', p_operator), settled_at = agentq.now()
     where tenant = p_tenant and session_id = p_session and state = 'unknown';
    get diagnostics v_count = row_count;
    return v_count;
end $$;


-- Bring one letter's session back, if it is still to be had: redriven | taken | moved | generation |
-- unknown_effects | no_step | deadline_over | parent_ended | agent_refused.
-- `taken`: somebody else has it, or has dealt with it. `moved`: the session went on without it.
create or replace function agentq.redrive_letter(
    p_job agentq.redrive_job, p_tenant text, p_letter uuid, p_state bytea, p_edit uuid, p_canary boolean
) returns text language plpgsql as $$
declare
    d agentq.dead_letter; r record; v_step uuid; v_copy uuid := gen_random_uuid(); v_session uuid; v_decided int;
begin
    perform set_config('agentq.tenant', '*', true);
    select session_id into v_session from agentq.dead_letter where tenant = p_tenant and letter_id = p_letter;
    -- The session first, as everywhere; whoever holds it is busy with this very letter.
    perform from agentq.session where tenant = p_tenant and session_id = v_session for no key update skip locked;
    if not found then return 'taken'; end if;
    select * into d from agentq.dead_letter
     where tenant = p_tenant and letter_id = p_letter and state = 'open' for no key update skip locked;
    if not found then return 'taken'; end if;
    if d.generation >= (p_job.terms ->> 'max_generation')::int then return 'generation'; end if;
    if exists (select from agentq.effect where tenant = p_tenant and session_id = v_session and state = 'unknown') then
        if p_job.terms ->> 'effects' is null then return 'unknown_effects'; end if;
        v_decided := agentq.decide_effects(p_tenant, v_session, p_job.terms ->> 'effects', p_job.operator);
        insert into agentq.operator_action (operator, tenant, action, target, reason, detail)
        values (p_job.operator, p_tenant, 'dlq effects', p_letter, p_job.reason,
                jsonb_build_object('decided', p_job.terms ->> 'effects', 'effects', v_decided, 'session', v_session));
    end if;
    v_step := d.step_id;
    if p_job.terms ->> 'from_step' is not null then
        select l.step_id into v_step from agentq.ledger_entry l
         where l.tenant = p_tenant and l.session_id = v_session and l.name = p_job.terms ->> 'from_step'
           and l.seq <= d.seq and l.superseded is null
         order by l.seq desc limit 1;
        if not found then return 'no_step'; end if;
    end if;
    select * into r from agentq.reopen_session(p_tenant, v_session, v_step, v_copy, d.generation, p_state, p_edit,
                                               (p_job.terms ->> 'deadline_s')::double precision);
    perform set_config('agentq.tenant', '*', true);
    if r.outcome in ('moved', 'superseded', 'live', 'missing') then
        update agentq.dead_letter
           set state = 'resolved', changed_at = agentq.now(), announced = true, note = 'its session went on without this redrive'
         where tenant = p_tenant and letter_id = p_letter;
        return 'moved';
    end if;
    if r.outcome <> 'reopened' then return r.outcome; end if;
    update agentq.dead_letter
       set state = 'redriving', job_id = p_job.job_id, canary = p_canary, redriven_as = v_copy, announced = true,
           changed_by = p_job.operator, note = p_job.reason, changed_at = agentq.now()
     where tenant = p_tenant and letter_id = p_letter;
    return 'redriven';
end $$;


-- The next letters of a job, each looked at once in a pass: what became of each.
-- The job's row is held meanwhile, so that two who drive it by mistake take turns.
create or replace function agentq.redrive_next(p_job uuid, p_max int, p_canary boolean)
returns table (tenant text, letter_id uuid, session_id uuid, outcome text)
language plpgsql set plan_cache_mode = 'force_custom_plan' as $$
#variable_conflict use_column
declare j agentq.redrive_job; c record; v_selection jsonb; v_redriven int := 0; v_refused int := 0;
begin
    perform set_config('agentq.tenant', '*', true);
    select * into strict j from agentq.redrive_job where job_id = p_job for update;
    if j.ended_at is not null then return; end if;
    -- As one value, so that the planner sees which filters there are, and begins where the job has come to.
    v_selection := j.selection || jsonb_strip_nulls(jsonb_build_object('state', 'open', 'since',
                       greatest((j.selection ->> 'since')::timestamptz, j.cursor_at)));
    for c in
        select d.tenant, d.letter_id, d.session_id, d.died_at
          from agentq.letters(v_selection) d
         where d.died_at <= j.until
           and (j.cursor_at is null or (d.died_at, d.letter_id) > (j.cursor_at, j.cursor_letter))
         order by d.died_at, d.letter_id limit p_max
    loop
        outcome := agentq.redrive_letter(j, c.tenant, c.letter_id, null, null, p_canary);
        v_redriven := v_redriven + (outcome = 'redriven')::int;
        v_refused := v_refused + (outcome not in ('redriven', 'taken', 'moved'))::int;
        j.cursor_at := c.died_at; j.cursor_letter := c.letter_id;
        tenant := c.tenant; letter_id := c.letter_id; session_id := c.session_id;
        return next;
    end loop;
    update agentq.redrive_job set cursor_at = j.cursor_at, cursor_letter = j.cursor_letter,
           redriven = redriven + v_redriven, refused = refused + v_refused where job_id = p_job;
end $$;


-- One letter with an edited state, as `redrive_next` does without.
create or replace function agentq.redrive_edited(
    p_job uuid, p_tenant text, p_letter uuid, p_state bytea, p_edit uuid, p_canary boolean)
returns text language plpgsql as $$
declare j agentq.redrive_job; v_outcome text;
begin
    perform set_config('agentq.tenant', '*', true);
    select * into strict j from agentq.redrive_job where job_id = p_job for update;
    if j.ended_at is not null then return 'taken'; end if;
    v_outcome := agentq.redrive_letter(j, p_tenant, p_letter, p_state, p_edit, p_canary);
    update agentq.redrive_job set (cursor_at, cursor_letter) = (
               select d.died_at, d.letter_id from agentq.dead_letter d where d.tenant = p_tenant and d.letter_id = p_letter),
           redriven = redriven + (v_outcome = 'redriven')::int,
           refused = refused + (v_outcome not in ('redriven', 'taken', 'moved'))::int where job_id = p_job;
    return v_outcome;
end $$;


-- What became of a job's canaries. Good: the session ended well, or got past the step that had died.
create or replace function agentq.canaries(p_job uuid)
returns table (good bigint, bad bigint, undecided bigint) language plpgsql stable as $$
begin
    return query select count(*) filter (where fate = 'good'), count(*) filter (where fate = 'bad'),
           count(*) filter (where fate is null)
      from (select case d.state when 'resolved' then 'good' when 'redriven' then 'bad' else (
                       select 'good' from agentq.ledger_entry l
                        where l.tenant = d.tenant and l.session_id = d.session_id and l.name = d.step and l.seq >= d.seq
                          and l.superseded is null and l.state = 'done' and l.settled_at >= d.changed_at limit 1) end as fate
              from agentq.dead_letter d where d.job_id = p_job and d.canary) f;
end $$;
