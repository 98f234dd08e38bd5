-- Budgets: the hot path's three calls, and what people ask and set.

-- name: reserve
select * from agentq.reserve(%(tenant)s, %(session)s, %(step)s, %(fence)s::int, %(token)s::bigint, %(id)s, %(provider)s,
    %(model)s, %(input)s::bigint, %(max)s::bigint, %(micros)s::bigint, %(price_version)s, %(declared_micros)s::bigint,
    %(declared_tokens)s::bigint);

-- name: settle_charges
select agentq.settle_charges(%(tenant)s, %(session)s, %(step)s, %(fence)s::int, %(charges)s, %(by)s);

-- name: leaked
select * from agentq.leaked_reservations(%(max)s::int);

-- name: check
select * from agentq.check_budgets(%(tenant)s);

-- name: prices
select model, input_micros, output_micros, cached_micros, revision, changed_at from agentq.model_price order by model;

-- name: set_price
insert into agentq.model_price as p (model, input_micros, output_micros, cached_micros)
values (%(model)s, %(input)s, %(output)s, %(cached)s)
on conflict (model) do update
   set input_micros = excluded.input_micros, output_micros = excluded.output_micros,
       cached_micros = excluded.cached_micros, revision = p.revision + 1, changed_at = agentq.now();

-- name: remove_price
delete from agentq.model_price where model = %(model)s returning model;

-- name: set_budget
insert into agentq.budget (tenant, scope, subject, period, cost_micros, tokens, on_refusal)
values (%(tenant)s, %(scope)s, %(subject)s, %(period)s, %(micros)s, %(tokens)s, %(on_refusal)s)
on conflict (tenant, scope, subject, period) do update
   set cost_micros = excluded.cost_micros, tokens = excluded.tokens, on_refusal = excluded.on_refusal,
       changed_at = agentq.now();

-- name: remove_budget
delete from agentq.budget
 where tenant = %(tenant)s and scope = %(scope)s and subject = %(subject)s and period = %(period)s
returning scope;

-- name: reopen_budget
select agentq.reopen_budget(%(tenant)s);

-- name: review_alerts
select agentq.review_alerts(%(tenant)s, %(scope)s, %(subject)s);

-- name: budgets
select tenant, scope, subject, period, cost_micros, tokens, on_refusal, changed_at from agentq.budget
 where %(tenant)s::text is null or tenant = %(tenant)s
 order by tenant, scope, subject, period;

-- name: windows
-- The windows that are open now, each with the budget that governs it; sessions only when one is named.
select w.tenant, w.scope, w.subject, w.period, w.starts_at,
       agentq.effective_limit(b.cost_micros, w.declared_micros, b.subject = w.subject),
       agentq.effective_limit(b.tokens, w.declared_tokens, b.subject = w.subject),
       b.on_refusal, w.spent_micros, w.reserved_micros, w.spent_tokens, w.reserved_tokens, w.calls
  from agentq.budget_window w
  left join agentq.session s on w.scope = 'session' and s.tenant = w.tenant and s.session_id::text = w.subject
  left join lateral agentq.budget_of(w.tenant, w.scope, w.subject, w.period, s.agent) b on true
 where (%(tenant)s::text is null or w.tenant = %(tenant)s)
   and case w.period when 'day' then w.starts_at = date_trunc('day', agentq.now(), 'UTC')
                     when 'month' then w.starts_at = date_trunc('month', agentq.now(), 'UTC')
                     else w.subject = %(session)s::text end
   and (%(session)s::text is null or w.period = 'session')
 order by w.tenant, w.scope, w.subject, w.period;

-- name: windows_of
-- Of these tenants' own budgets, the windows that are open now.
select w.tenant, w.scope, w.subject, w.period, w.starts_at, b.cost_micros, b.tokens, b.on_refusal, w.spent_micros,
       w.reserved_micros, w.spent_tokens, w.reserved_tokens, w.calls
  from agentq.budget b
  join agentq.budget_window w on w.tenant = b.tenant and w.scope = b.scope and w.subject = b.subject and w.period = b.period
       and w.starts_at = case b.period when 'day' then (select date_trunc('day', agentq.now(), 'UTC'))
                                       else (select date_trunc('month', agentq.now(), 'UTC')) end
 where b.scope = 'tenant' and b.tenant = any (%(tenants)s::text[])
 order by w.tenant, w.period;

-- name: tightest
-- Of all tenants' own budgets in money, the open windows of which most is used: from the budgets that were set to
-- their windows, so that neither tenants without one nor the windows of sessions are walked through.
select w.tenant, w.period, b.cost_micros, w.spent_micros, w.reserved_micros
  from agentq.budget b
  join agentq.budget_window w on w.tenant = b.tenant and w.scope = b.scope and w.subject = b.subject and w.period = b.period
       and w.starts_at = case b.period when 'day' then (select date_trunc('day', agentq.now(), 'UTC'))
                                       else (select date_trunc('month', agentq.now(), 'UTC')) end
 where b.scope = 'tenant' and b.cost_micros > 0
 order by (w.spent_micros + w.reserved_micros)::float8 / b.cost_micros desc, w.tenant, w.period limit %(top)s;

-- name: ledger
-- Every reservation of a session, and of its children where they drew on it.
with recursive line as (
    select session_id from agentq.session where tenant = %(tenant)s and session_id = %(session)s
    union
    select s.session_id from agentq.session s join line on s.parent_session = line.session_id
     where s.tenant = %(tenant)s and %(children)s::boolean)
select r.reservation_id, r.session_id, r.step_id, r.fence, r.agent, r.provider, r.model, r.state, r.price_version,
       r.input_tokens, r.max_tokens, r.reserved_micros, r.used_input, r.used_cached, r.used_output, r.charged_micros,
       r.at, r.settled_at, r.settled_by, r.note
  from agentq.reservation r
 where r.tenant = %(tenant)s and (r.session_id = %(session)s or r.session_id in (select session_id from line))
 order by r.at, r.reservation_id;

-- name: alerts
select tenant, scope, subject, period, starts_at, threshold, at, session_id, detail from agentq.budget_alert
 where %(tenant)s::text is null or tenant = %(tenant)s
 order by at desc limit %(limit)s;
