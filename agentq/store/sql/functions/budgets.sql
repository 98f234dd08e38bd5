-- Budgets: reserved before a call, settled after it, and never both forgotten.
--
-- A reservation counts in every window it falls into: its session and that session's ancestors, its
-- agent, its provider and its tenant, each by day and by month. Windows open and close at midnight UTC
-- on the database's clock. They are locked in one order (scope, subject, period, start), always after
-- the session and its entries.

-- The windows that a call counts in. A child session draws on its parent's window as well.
create or replace function agentq.budget_windows_of(
    p_tenant text, p_session uuid, p_agent text, p_provider text, p_day timestamptz, p_month timestamptz
) returns table (scope text, subject text, period text, starts_at timestamptz, agent text)
language sql stable as $$
    with recursive line as (
        select s.session_id, s.parent_session, s.agent from agentq.session s
         where s.tenant = p_tenant and s.session_id = p_session
        union all
        select s.session_id, s.parent_session, s.agent from agentq.session s
          join line on s.session_id = line.parent_session
         where s.tenant = p_tenant
    )
    select 'session', line.session_id::text, 'session', to_timestamp(0), line.agent from line
    union all
    -- A session that was erased is still charged, to itself alone.
    select 'session', p_session::text, 'session', to_timestamp(0), p_agent where not exists (select from line)
    union all
    select w.scope, w.subject, w.period, w.starts_at, p_agent
      from (values ('agent', p_agent, 'day', p_day), ('agent', p_agent, 'month', p_month),
                   ('provider', p_provider, 'day', p_day), ('provider', p_provider, 'month', p_month),
                   ('tenant', '', 'day', p_day), ('tenant', '', 'month', p_month))
           as w (scope, subject, period, starts_at)
$$;


-- The budget that governs a window. Of a session: its own, else its agent's sessions', else all sessions'.
create or replace function agentq.budget_of(p_tenant text, p_scope text, p_subject text, p_period text, p_agent text)
returns setof agentq.budget language sql stable as $$
    select b.* from agentq.budget b
     where b.tenant = p_tenant and b.scope = p_scope and b.period = p_period
       and (b.subject = p_subject or p_scope = 'session' and b.subject in ('', p_agent))
     order by b.subject = p_subject desc, b.subject <> '' desc limit 1
$$;


-- What governs each window that is locked now: the operator's budget and, for sessions, what the
-- agent's code declares. The lower one counts, unless the operator set one for this very session.
create or replace function agentq.effective_limit(p_set bigint, p_declared bigint, p_exact boolean)
returns bigint language sql immutable as $$
    select case when p_exact then p_set else least(p_set, p_declared) end
$$;


-- Reserve a call in all of its windows, or in none.
-- status: ok | refused | superseded | closed | unpriced
-- Refused: `why` is `spent` (the limit would be passed), `held` (only together with calls that run now,
-- so it is worth coming back soon) or `never` (this one call is larger than the whole limit).
-- It waits for the disk: a call must not go out whose reservation a crash can forget.
create or replace function agentq.reserve(
    p_tenant text, p_session uuid, p_step uuid, p_fence int, p_token bigint, p_id text, p_provider text, p_model text,
    p_input bigint, p_max bigint, p_micros bigint, p_price_version text, p_declared_micros bigint,
    p_declared_tokens bigint
) returns table (
    status text, why text, scope text, subject text, period text, on_refusal text, limit_micros bigint,
    limit_tokens bigint, spent_micros bigint, reserved_micros bigint, spent_tokens bigint, reserved_tokens bigint,
    wait_s double precision
) language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    v_day timestamptz := date_trunc('day', v_now, 'UTC');
    v_month timestamptz := date_trunc('month', v_now, 'UTC');
    v_agent text; v_state text; v_tokens bigint := p_input + p_max; v_micros bigint := coalesce(p_micros, 0);
    r record;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select s.agent into v_agent from agentq.session s
      join agentq.ledger_entry l on l.tenant = s.tenant and l.session_id = s.session_id
     where s.tenant = p_tenant and s.session_id = p_session and l.step_id = p_step
       and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token;
    if not found then status := 'superseded'; return next; return; end if;
    select e.state into v_state from agentq.reservation e where e.tenant = p_tenant and e.reservation_id = p_id;
    if found then
        -- The answer to the first question was lost, and this is the same question.
        status := case v_state when 'held' then 'ok' else 'closed' end; return next; return;
    end if;

    insert into agentq.budget_window as w (tenant, scope, subject, period, starts_at, reserved_micros, reserved_tokens,
                                           calls, declared_micros, declared_tokens)
    select p_tenant, o.scope, o.subject, o.period, o.starts_at, v_micros, v_tokens, 1,
           case when o.subject = p_session::text then p_declared_micros end,
           case when o.subject = p_session::text then p_declared_tokens end
      from agentq.budget_windows_of(p_tenant, p_session, v_agent, p_provider, v_day, v_month) o
     order by o.scope, o.subject, o.period, o.starts_at
    on conflict (tenant, scope, subject, period, starts_at) do update
       set reserved_micros = w.reserved_micros + excluded.reserved_micros,
           reserved_tokens = w.reserved_tokens + excluded.reserved_tokens, calls = w.calls + 1,
           declared_micros = coalesce(excluded.declared_micros, w.declared_micros),
           declared_tokens = coalesce(excluded.declared_tokens, w.declared_tokens);

    -- A statement of its own, so that it sees what the locks above were waited for.
    select o.scope, o.subject, o.period, o.starts_at, l.cost, l.tokens, l.on_refusal, l.unpriced,
           w.spent_micros, w.reserved_micros - v_micros as held_micros,
           w.spent_tokens, w.reserved_tokens - v_tokens as held_tokens,
           case when v_micros > l.cost or v_tokens > l.tokens then 'never'
                when w.spent_micros + v_micros > l.cost or w.spent_tokens + v_tokens > l.tokens then 'spent'
                else 'held' end as why
      into r
      from agentq.budget_windows_of(p_tenant, p_session, v_agent, p_provider, v_day, v_month) o
      join agentq.budget_window w on w.tenant = p_tenant and w.scope = o.scope and w.subject = o.subject
                                 and w.period = o.period and w.starts_at = o.starts_at
      left join lateral agentq.budget_of(p_tenant, o.scope, o.subject, o.period, o.agent) b on true
     cross join lateral (
        select agentq.effective_limit(b.cost_micros, w.declared_micros, b.subject = o.subject) as cost,
               agentq.effective_limit(b.tokens, w.declared_tokens, b.subject = o.subject) as tokens,
               coalesce(b.on_refusal, 'end') as on_refusal,
               p_micros is null and b.cost_micros is not null and b.tokens is null as unpriced) l
     where w.spent_micros + w.reserved_micros > l.cost or w.spent_tokens + w.reserved_tokens > l.tokens or l.unpriced
     order by l.unpriced desc, case when v_micros > l.cost or v_tokens > l.tokens then 0
                when w.spent_micros + v_micros > l.cost or w.spent_tokens + v_tokens > l.tokens then 1 else 2 end,
              case l.on_refusal when 'end' then 0 when 'park' then 1 else 2 end, o.period desc
     limit 1;
    if not found then
        insert into agentq.reservation (tenant, reservation_id, session_id, step_id, fence, agent, provider, model,
                                        price_version, day, month, input_tokens, max_tokens, reserved_micros, at)
        values (p_tenant, p_id, p_session, p_step, p_fence, v_agent, p_provider, p_model, p_price_version, v_day,
                v_month, p_input, p_max, p_micros, v_now);
        status := 'ok'; return next; return;
    end if;

    update agentq.budget_window w
       set reserved_micros = w.reserved_micros - v_micros, reserved_tokens = w.reserved_tokens - v_tokens,
           calls = w.calls - 1
      from agentq.budget_windows_of(p_tenant, p_session, v_agent, p_provider, v_day, v_month) o
     where w.tenant = p_tenant and w.scope = o.scope and w.subject = o.subject and w.period = o.period
       and w.starts_at = o.starts_at;
    if r.why <> 'held' and not r.unpriced then
        perform agentq.budget_alert(p_tenant, r.scope, r.subject, r.period, r.starts_at, 100::smallint, p_session,
                                    format('a call was refused: %s needs more than is left', p_model));
    end if;
    status := case when r.unpriced then 'unpriced' else 'refused' end; why := r.why; scope := r.scope;
    subject := r.subject; period := r.period; on_refusal := r.on_refusal; limit_micros := r.cost; limit_tokens := r.tokens;
    spent_micros := r.spent_micros; reserved_micros := r.held_micros; spent_tokens := r.spent_tokens;
    reserved_tokens := r.held_tokens;
    wait_s := extract(epoch from case r.period when 'day' then (v_day at time zone 'UTC' + interval '1 day') at time zone 'UTC'
                                              when 'month' then (v_month at time zone 'UTC' + interval '1 month') at time zone 'UTC'
                                              end - v_now);
    return next;
end $$;


-- Say once for each window that a budget passed a threshold: in the table, and to whoever watches the session.
create or replace function agentq.budget_alert(
    p_tenant text, p_scope text, p_subject text, p_period text, p_starts_at timestamptz, p_threshold smallint,
    p_session uuid, p_detail text
) returns void language plpgsql as $$
begin
    insert into agentq.budget_alert (tenant, scope, subject, period, starts_at, threshold, session_id, detail)
    values (p_tenant, p_scope, p_subject, p_period, p_starts_at, p_threshold, p_session, p_detail)
    on conflict do nothing;
    if found and exists (select from agentq.session where tenant = p_tenant and session_id = p_session) then
        insert into agentq.session_event (tenant, session_id, kind, body)
        values (p_tenant, p_session, 'budget', convert_to(jsonb_build_object(
            'scope', p_scope, 'subject', p_subject, 'period', p_period, 'threshold', p_threshold,
            'text', p_detail)::text, 'UTF8'));
    end if;
end $$;


-- Settle calls of one attempt: charged (as used), uncertain (as estimated), or released (never sent).
-- Each once. What the relay had charged as uncertain, because the attempt was gone, is corrected when the
-- attempt's own word comes late: money is what was spent, whoever owns the step by then.
create or replace function agentq.settle_charges(
    p_tenant text, p_session uuid, p_step uuid, p_fence int, p_charges jsonb, p_by text
) returns int language plpgsql as $$
declare
    v_now timestamptz := agentq.now();
    c record; r agentq.reservation; w record; x record;
    v_micros bigint; v_in bigint; v_out bigint; v_settled int := 0; v_changes jsonb := '[]'; v_rolled boolean := false;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    if p_by <> 'settlement' then
        v_rolled := agentq.take_out_spend(p_tenant, p_session, p_step, p_fence);
    end if;
    for c in
        select * from jsonb_to_recordset(p_charges) as j (
            id text, state text, micros bigint, input bigint, cached bigint, output bigint, note text)
         order by j.id
    loop
        select * into r from agentq.reservation e
         where e.tenant = p_tenant and e.reservation_id = c.id and e.session_id = p_session and e.step_id = p_step
           and e.fence = p_fence
           and (e.state = 'held' or e.state = 'uncertain' and e.settled_by = 'relay' and p_by <> 'relay')
           for update;
        if not found then continue; end if;
        -- Without its own figures a call is charged as it was estimated: never less for not being known.
        v_micros := case c.state when 'released' then null when 'uncertain' then r.reserved_micros
                                 else coalesce(c.micros, r.reserved_micros) end;
        v_in := case c.state when 'released' then null when 'uncertain' then r.input_tokens else c.input end;
        v_out := case c.state when 'released' then null when 'uncertain' then r.max_tokens else c.output end;
        update agentq.reservation
           set state = c.state, charged_micros = v_micros, used_input = v_in, used_output = v_out,
               used_cached = case c.state when 'charged' then coalesce(c.cached, 0) end, settled_at = v_now,
               settled_by = case when r.state = 'held' then p_by else 'late' end, note = left(c.note, 200)
         where tenant = p_tenant and reservation_id = c.id;
        v_settled := v_settled + 1;
        v_changes := v_changes || jsonb_build_object(
            'agent', r.agent, 'provider', r.provider, 'day', r.day, 'month', r.month,
            'input', coalesce(v_in, 0) - case r.state when 'held' then 0 else coalesce(r.used_input, 0) end,
            'output', coalesce(v_out, 0) - case r.state when 'held' then 0 else coalesce(r.used_output, 0) end,
            'at', r.at, 'held_micros', case r.state when 'held' then coalesce(r.reserved_micros, 0) else 0 end,
            'held_tokens', case r.state when 'held' then r.input_tokens + r.max_tokens else 0 end,
            'micros', coalesce(v_micros, 0) - case r.state when 'held' then 0 else coalesce(r.charged_micros, 0) end,
            'tokens', coalesce(v_in + v_out, 0) - case r.state when 'held' then 0 else r.used_input + r.used_output end);
    end loop;
    if v_settled > 0 and p_by <> 'settlement' then
        perform agentq.trace_charges(p_tenant, p_session, p_step, p_fence, v_changes);
    end if;
    if v_rolled then perform agentq.put_back_spend(p_tenant, p_session); end if;
    if v_settled = 0 then return 0; end if;

    -- All windows of all calls, each once and in the one order.
    for w in
        select o.scope, o.subject, o.period, o.starts_at, min(o.agent) as agent, sum(k.held_micros)::bigint as held_micros,
               sum(k.held_tokens)::bigint as held_tokens, sum(k.micros)::bigint as micros, sum(k.tokens)::bigint as tokens
          from jsonb_to_recordset(v_changes) as k (
               agent text, provider text, day timestamptz, month timestamptz, held_micros bigint, held_tokens bigint,
               micros bigint, tokens bigint)
         cross join lateral agentq.budget_windows_of(p_tenant, p_session, k.agent, k.provider, k.day, k.month) o
         group by o.scope, o.subject, o.period, o.starts_at
         order by o.scope, o.subject, o.period, o.starts_at
    loop
        update agentq.budget_window b
           set reserved_micros = b.reserved_micros - w.held_micros, reserved_tokens = b.reserved_tokens - w.held_tokens,
               spent_micros = b.spent_micros + w.micros, spent_tokens = b.spent_tokens + w.tokens
         where b.tenant = p_tenant and b.scope = w.scope and b.subject = w.subject and b.period = w.period
           and b.starts_at = w.starts_at
        returning b.spent_micros, b.spent_tokens, b.declared_micros, b.declared_tokens into x;
        if w.micros > 0 or w.tokens > 0 then
            perform agentq.watch_thresholds(p_tenant, p_session, w.scope, w.subject, w.period, w.starts_at, w.agent,
                x.spent_micros, x.spent_tokens, w.micros, w.tokens, x.declared_micros, x.declared_tokens);
        end if;
    end loop;
    return v_settled;
end $$;


-- Which thresholds this charge passed. Only a charge that crosses one looks at the table of alerts.
create or replace function agentq.watch_thresholds(
    p_tenant text, p_session uuid, p_scope text, p_subject text, p_period text, p_starts_at timestamptz, p_agent text,
    p_spent bigint, p_tokens bigint, p_micros_added bigint, p_tokens_added bigint, p_declared bigint,
    p_declared_tokens bigint
) returns void language plpgsql as $$
declare l record; t smallint;
begin
    select agentq.effective_limit(b.cost_micros, p_declared, b.subject = p_subject) as cost,
           agentq.effective_limit(b.tokens, p_declared_tokens, b.subject = p_subject) as tokens
      into l from (select) as one
      left join lateral agentq.budget_of(p_tenant, p_scope, p_subject, p_period, p_agent) b on true;
    foreach t in array array[50, 80, 100]::smallint[] loop
        if p_spent * 100 >= l.cost * t and (p_spent - p_micros_added) * 100 < l.cost * t then
            perform agentq.budget_alert(p_tenant, p_scope, p_subject, p_period, p_starts_at, t, p_session,
                format('%s of %s micros of a dollar are spent', p_spent, l.cost));
        elsif p_tokens * 100 >= l.tokens * t and (p_tokens - p_tokens_added) * 100 < l.tokens * t then
            perform agentq.budget_alert(p_tenant, p_scope, p_subject, p_period, p_starts_at, t, p_session,
                format('%s of %s tokens are spent', p_tokens, l.tokens));
        end if;
    end loop;
end $$;


-- A limit was changed: of the open windows that it governs, thresholds that are passed now are told, and those that are
-- not any more are forgotten, so that they are told again. Of all sessions at once nothing is.
create or replace function agentq.review_alerts(p_tenant text, p_scope text, p_subject text) returns void
language plpgsql as $$
declare w record; t smallint;
begin
    for w in
        select o.*, s.agent, l.cost, l.tokens
          from agentq.budget_window o
          left join agentq.session s on o.scope = 'session' and s.tenant = o.tenant and s.session_id::text = o.subject
          left join lateral agentq.budget_of(o.tenant, o.scope, o.subject, o.period, s.agent) b on true
         cross join lateral (
            select agentq.effective_limit(b.cost_micros, o.declared_micros, b.subject = o.subject) as cost,
                   agentq.effective_limit(b.tokens, o.declared_tokens, b.subject = o.subject) as tokens) l
         where o.tenant = p_tenant and o.scope = p_scope and o.subject = p_subject
           and o.starts_at = case o.period when 'day' then date_trunc('day', agentq.now(), 'UTC')
                                           when 'month' then date_trunc('month', agentq.now(), 'UTC')
                                           else o.starts_at end
    loop
        foreach t in array array[50, 80, 100]::smallint[] loop
            if w.spent_micros * 100 >= w.cost * t then
                perform agentq.budget_alert(p_tenant, w.scope, w.subject, w.period, w.starts_at, t, null,
                    format('%s of %s micros of a dollar are spent', w.spent_micros, w.cost));
            elsif w.spent_tokens * 100 >= w.tokens * t then
                perform agentq.budget_alert(p_tenant, w.scope, w.subject, w.period, w.starts_at, t, null,
                    format('%s of %s tokens are spent', w.spent_tokens, w.tokens));
            else
                delete from agentq.budget_alert a
                 where a.tenant = p_tenant and a.scope = w.scope and a.subject = w.subject and a.period = w.period
                   and a.starts_at = w.starts_at and a.threshold = t;
            end if;
        end loop;
    end loop;
end $$;


-- Reservations whose attempt is gone: its worker died, or its settlement never came.
-- Whether their calls went out is not known, so they are charged as estimated.
create or replace function agentq.leaked_reservations(p_max int)
returns table (tenant text, session_id uuid, step_id uuid, fence int, charges jsonb) language plpgsql as $$
#variable_conflict use_column
begin
    perform set_config('agentq.tenant', '*', true);
    return query
    select r.tenant, r.session_id, r.step_id, r.fence,
           jsonb_agg(jsonb_build_object('id', r.reservation_id, 'state', 'uncertain',
                                        'note', 'its attempt was gone before it was settled'))
      from (select * from agentq.reservation h where h.state = 'held' limit p_max * 20) r
     where not exists (
            select from agentq.ledger_entry l
             where l.tenant = r.tenant and l.session_id = r.session_id and l.step_id = r.step_id
               and l.state = 'running' and l.fence = r.fence)
     group by r.tenant, r.session_id, r.step_id, r.fence
     limit p_max;
end $$;


-- A tenant's limit was changed: what waits for the next window looks again at once. Their due time tells
-- them apart: nothing else that ran before comes due within a minute after midnight UTC.
create or replace function agentq.reopen_budget(p_tenant text) returns int language plpgsql as $$
declare
    v_now timestamptz := agentq.now();
    v_day timestamptz := (date_trunc('day', v_now at time zone 'UTC') + interval '1 day') at time zone 'UTC';
    v_month timestamptz := (date_trunc('month', v_now at time zone 'UTC') + interval '1 month') at time zone 'UTC';
    v_found int;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    update agentq.ledger_entry set due_at = v_now
     where tenant = p_tenant and state = 'ready' and fence > 0
       and (due_at >= v_day and due_at < v_day + interval '1 minute'
            or due_at >= v_month and due_at < v_month + interval '1 minute');
    get diagnostics v_found = row_count;
    return v_found;
end $$;


-- Everything added up again: windows whose sums are not those of their reservations. No row: they reconcile.
create or replace function agentq.check_budgets(p_tenant text)
returns table (tenant text, scope text, subject text, period text, starts_at timestamptz, what text, recorded bigint,
               added_up bigint) language plpgsql as $$
#variable_conflict use_column
begin
    perform set_config('agentq.tenant', p_tenant, true);
    return query
    with sums as (
        select r.tenant, o.scope, o.subject, o.period, o.starts_at,
               sum(case r.state when 'held' then coalesce(r.reserved_micros, 0) else 0 end)::bigint as reserved_micros,
               sum(case r.state when 'held' then r.input_tokens + r.max_tokens else 0 end)::bigint as reserved_tokens,
               sum(coalesce(r.charged_micros, 0))::bigint as spent_micros,
               sum(coalesce(r.used_input + r.used_output, 0))::bigint as spent_tokens, count(*) as calls
          from agentq.reservation r
         cross join lateral agentq.budget_windows_of(r.tenant, r.session_id, r.agent, r.provider, r.day, r.month) o
         -- A session that retention removed has no window of its own any more; its calls count in all others.
         where o.scope <> 'session' or exists (
            select from agentq.session k where k.tenant = r.tenant and k.session_id = r.session_id)
         group by r.tenant, o.scope, o.subject, o.period, o.starts_at
    )
    select coalesce(w.tenant, s.tenant), coalesce(w.scope, s.scope), coalesce(w.subject, s.subject),
           coalesce(w.period, s.period), coalesce(w.starts_at, s.starts_at), v.what, v.recorded, v.added_up
      from agentq.budget_window w
      full join sums s on s.tenant = w.tenant and s.scope = w.scope and s.subject = w.subject and s.period = w.period
                      and s.starts_at = w.starts_at
     cross join lateral (values
           ('reserved_micros', coalesce(w.reserved_micros, 0), coalesce(s.reserved_micros, 0)),
           ('reserved_tokens', coalesce(w.reserved_tokens, 0), coalesce(s.reserved_tokens, 0)),
           ('spent_micros', coalesce(w.spent_micros, 0), coalesce(s.spent_micros, 0)),
           ('spent_tokens', coalesce(w.spent_tokens, 0), coalesce(s.spent_tokens, 0)),
           ('calls', coalesce(w.calls, 0), coalesce(s.calls, 0))) as v (what, recorded, added_up)
     where v.recorded <> v.added_up;
end $$;
