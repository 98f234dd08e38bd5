-- Traces: one row per attempt, written by whatever ends it, and what the attempt did and decided.


-- Write an attempt's row, its events and decisions, in the transaction that ends it.
-- `e` is the entry as the settlement found it; `p_plan` holds usage, `trace` and `decisions`.
-- How much of its cost was for repairs stands in its own row, so that no report need add up its calls.
create or replace function agentq.trace_attempt(
    e agentq.ledger_entry, p_agent text, p_version int, p_worker uuid, p_closing text, p_now timestamptz,
    p_failure jsonb, p_leads_to text, p_plan jsonb
) returns void language plpgsql as $$
declare v_content boolean;
begin
    insert into agentq.trace (
        tenant, session_id, step_id, fence, ordinal, ended_at, kind, name, agent, agent_version, seq, branch, attempt,
        queued_at, started_at, closing, failure, worker, leads_to, tokens_in, tokens_out, cost_micros, detail)
    values (e.tenant, e.session_id, e.step_id, e.fence, 0, p_now, 'attempt', e.name, p_agent, p_version, e.seq, e.branch,
            case when p_closing in ('release', 'postpone', 'park', 'await', 'repair') then e.attempt + 1 else e.attempt end,
            case when p_closing <> 'release' then e.queued_at end, e.started_at, p_closing, p_failure, p_worker, p_leads_to,
            coalesce((p_plan -> 'usage' ->> 'tokens_in')::bigint, 0),
            coalesce((p_plan -> 'usage' ->> 'tokens_out')::bigint, 0),
            coalesce((p_plan -> 'usage' ->> 'cost_micros')::bigint, 0),
            case when p_plan -> 'trace' @? '$[*].detail.repair ? (@ == true)' then agentq.repairs_in(p_plan) end);
    if p_plan ? 'trace' then
        perform agentq.trace_events(e, p_agent, p_version, p_worker, p_plan -> 'trace');
    end if;
    if p_plan ? 'decisions' then
        select trace_content is distinct from 'off' into v_content from agentq.tenant where name = e.tenant;
        insert into agentq.decision (tenant, session_id, step_id, fence, ordinal, decided_at, agent, step, options, picked,
                                     why, confidence, limits, approver)
        select e.tenant, e.session_id, e.step_id, e.fence, d.n, e.started_at + make_interval(secs => d.at_s), p_agent,
               e.name, decode(case when v_content then d.options else coalesce(d.bare, d.options) end, 'base64'), d.picked,
               case when v_content then d.why end,
               d.confidence, d.limits, d.approver
          from jsonb_to_recordset(p_plan -> 'decisions') as d (
               n smallint, at_s double precision, options text, bare text, picked text, why text, confidence real, limits jsonb,
               approver text);
    end if;
    if p_closing in ('retry', 'repair', 'postpone') and e.due_at > p_now or p_plan ? 'steps' then
        perform agentq.trace_waits(e, p_agent, p_version, p_closing, p_now, p_plan);
    end if;
    if e.approval is not null and p_closing <> 'await' then
        perform agentq.trace_approval(e, p_agent, p_version);
    end if;
    if p_closing not in ('release', 'postpone', 'park', 'await', 'cancelled') then
        perform agentq.tally(e, p_agent, p_version, p_closing, p_now, p_failure, p_plan);
    end if;
end $$;


-- The calls of an attempt that repaired what a model had written, and what they cost: no more than the attempt did.
create or replace function agentq.repairs_in(p_plan jsonb) returns jsonb language sql immutable as $$
    select jsonb_build_object(
               'repairs', count(*),
               'repair_micros', least(coalesce(sum((x ->> 'cost_micros')::bigint), 0)::bigint,
                                      coalesce((p_plan -> 'usage' ->> 'cost_micros')::bigint, 0)))
      from jsonb_array_elements(p_plan -> 'trace') x where x -> 'detail' -> 'repair' = 'true'
$$;


-- The waits that a settlement orders: until the next attempt, or until a timer of what follows.
-- Written when they begin, so that whoever looks meanwhile sees until when; a session that ends sooner leaves them.
create or replace function agentq.trace_waits(
    e agentq.ledger_entry, p_agent text, p_version int, p_closing text, p_now timestamptz, p_plan jsonb
) returns void language sql as $$
    insert into agentq.trace (
        tenant, session_id, step_id, fence, ordinal, ended_at, kind, name, agent, agent_version, seq, branch, attempt,
        started_at, detail)
    select e.tenant, e.session_id, e.step_id, e.fence, 32000 + w.n, w.until, 'wait', w.name, p_agent, p_version, e.seq,
           e.branch, e.attempt, p_now, jsonb_build_object('outcome', w.why)
      from (select 1 as n, e.due_at as until, e.name as name,
                   case p_closing when 'postpone' then 'put off' else 'before the next attempt' end as why
             where p_closing in ('retry', 'repair', 'postpone') and e.due_at > p_now
             union all
            select 1 + (row_number() over ())::int, p_now + make_interval(secs => s.delay_s), s.name, 'timer'
              from jsonb_to_recordset(p_plan -> 'steps') as s (name text, delay_s double precision)
             where p_closing = 'next' and s.delay_s > 0 limit 200) w
$$;


-- The wait for a person that let this step's attempt go on: once, with the first attempt after the decision.
create or replace function agentq.trace_approval(e agentq.ledger_entry, p_agent text, p_version int)
returns void language sql as $$
    insert into agentq.trace (
        tenant, session_id, step_id, fence, ordinal, ended_at, kind, name, agent, agent_version, seq, branch, attempt,
        started_at, detail)
    select e.tenant, e.session_id, e.step_id, e.fence, 32767, a.decided_at, 'approval', a.name, p_agent, p_version, e.seq,
           e.branch, greatest(e.attempt, 1), a.asked_at,
           jsonb_strip_nulls(jsonb_build_object('outcome', a.state, 'by', a.decided_by, 'approval', a.approval_id,
                                                'effect_key', a.effect_key))
      from agentq.approval a
     where a.tenant = e.tenant and a.approval_id = e.approval and a.state in ('granted', 'denied', 'expired')
       and a.session_id = e.session_id
       and not exists (select from agentq.trace t
                        where t.tenant = e.tenant and t.session_id = e.session_id and t.step_id = e.step_id
                          and t.ordinal = 32767 and t.ended_at = a.decided_at)
$$;


-- What an attempt that was lost is known to have used: its calls that were settled before it was.
-- It waits for a settlement that runs now, which then finds the row that this is for.
create or replace function agentq.usage_of_lost(e agentq.ledger_entry) returns jsonb language sql volatile as $$
    with settled as (
        select charged_micros, used_input, used_output from agentq.reservation
         where tenant = e.tenant and session_id = e.session_id and step_id = e.step_id and fence = e.fence
         order by reservation_id for update)  -- in the order in which `settle_charges` locks them
    select jsonb_build_object('usage', jsonb_build_object(
               'tokens_in', coalesce(sum(used_input), 0), 'tokens_out', coalesce(sum(used_output), 0),
               'cost_micros', coalesce(sum(charged_micros), 0)))
      from settled
$$;


-- Calls that were settled without their attempt's settlement: its row, if it is written by now, tells them too,
-- so that traces and budgets come to the same sums.
create or replace function agentq.trace_charges(
    p_tenant text, p_session uuid, p_step uuid, p_fence int, p_changes jsonb
) returns void language sql as $$
    update agentq.trace t
       set tokens_in = t.tokens_in + c.input, tokens_out = t.tokens_out + c.output, cost_micros = t.cost_micros + c.micros
      from (select sum(k.input)::bigint as input, sum(k.output)::bigint as output, sum(k.micros)::bigint as micros,
                   min(k.at) as since
              from jsonb_to_recordset(p_changes) as k (input bigint, output bigint, micros bigint, at timestamptz)) c
     where t.tenant = p_tenant and t.session_id = p_session and t.step_id = p_step and t.fence = p_fence
       and t.ordinal = 0 and t.ended_at >= c.since
$$;


-- The events of an attempt. A tenant that keeps no content gets its rows without it.
create or replace function agentq.trace_events(
    e agentq.ledger_entry, p_agent text, p_version int, p_worker uuid, p_events jsonb
) returns void language plpgsql as $$
declare v_content boolean;
begin
    select trace_content is distinct from 'off' into v_content from agentq.tenant where name = e.tenant;
    insert into agentq.trace (
        tenant, session_id, step_id, fence, ordinal, ended_at, kind, name, agent, agent_version, seq, branch, attempt,
        started_at, failure, worker, tokens_in, tokens_out, cost_micros, detail, input, output)
    select e.tenant, e.session_id, e.step_id, e.fence, t.n, e.started_at + make_interval(secs => t.at_s + t.took_s),
           t.kind, t.name, p_agent, p_version, e.seq, e.branch, e.attempt, e.started_at + make_interval(secs => t.at_s),
           t.failure, p_worker, coalesce(t.tokens_in, 0), coalesce(t.tokens_out, 0), coalesce(t.cost_micros, 0), t.detail,
           case when v_content then decode(t.input, 'base64') end, case when v_content then decode(t.output, 'base64') end
      from jsonb_to_recordset(p_events) as t (
           n smallint, kind text, name text, at_s double precision, took_s double precision, failure jsonb,
           tokens_in bigint, tokens_out bigint, cost_micros bigint, detail jsonb, input text, output text);
end $$;


-- The names of the steps that a settlement adds, for people.
create or replace function agentq.names_in(p_steps jsonb) returns text language sql immutable as $$
    select string_agg(case when n > 1 then name || ' ×' || n else name end, ', ' order by first)
      from (select s ->> 'name' as name, count(*) as n, min(at) as first
              from jsonb_array_elements(p_steps) with ordinality as x (s, at)
             group by 1 order by 3 limit 20) as names $$;


-- Make the partitions of this week and of `p_ahead` more. Runs as the tables' owner, because the fleet's
-- role may not create tables; anybody may call it, and it makes nothing else.
-- The real clock on purpose: a clock that a test has moved must not make weeks of a far future.
create or replace function agentq.prepare_traces(p_ahead int) returns setof text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_parent text; v_column text; v_from timestamptz; v_to timestamptz; v_name text;
begin
    if not pg_try_advisory_xact_lock(1634166382, -1) then return; end if;
    perform set_config('agentq.tenant', '*', true), set_config('lock_timeout', '2s', true);
    foreach v_parent in array array['trace', 'decision'] loop
        v_column := case v_parent when 'trace' then 'ended_at' else 'decided_at' end;
        for i in 0..least(greatest(p_ahead, 0), 52) loop
            v_from := date_trunc('week', clock_timestamp(), 'UTC') + make_interval(days => 7 * i);
            v_to := v_from + make_interval(days => 7);
            v_name := v_parent || '_' || to_char(v_from at time zone 'UTC', 'YYYYMMDD');
            continue when to_regclass('agentq.' || v_name) is not null;
            -- Beside the parent and then attached: that locks out no settlement, as `partition of` would.
            execute format('create table agentq.%I (like agentq.%I including all)', v_name, v_parent);
            execute format('with moved as (delete from agentq.%I where %I >= %L and %I < %L returning *)
                            insert into agentq.%I select * from moved',
                           v_parent || '_rest', v_column, v_from, v_column, v_to, v_name);
            perform agentq.guard_partition(v_name);
            execute format('alter table agentq.%I attach partition agentq.%I for values from (%L) to (%L)',
                           v_parent, v_name, v_from, v_to);
            return next v_name;
        end loop;
    end loop;
exception when lock_not_available then
    return;  -- somebody reads the traces for long; the next round tries again
end $$;


-- Row security on the partition itself, for whoever names it instead of its parent.
create or replace function agentq.guard_partition(p_name text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    execute format('alter table agentq.%I enable row level security', p_name);
    execute format('alter table agentq.%I force row level security', p_name);
    execute format('drop policy if exists tenant_rows on agentq.%I', p_name);
    execute format($policy$create policy tenant_rows on agentq.%I using (
        tenant = current_setting('agentq.tenant', true) or current_setting('agentq.tenant', true) = '*')$policy$, p_name);
end $$;


-- Drop the weeks that ended more than `p_keep_days` ago. Returns what was dropped.
-- A reader in the way makes it give up at once: settlements would queue up behind the waiting lock.
-- A week whose spend is being summed up, as after the upgrade that began with it, stays until that has passed it.
create or replace function agentq.forget_traces(p_keep_days int) returns setof text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare v_name text; v_before timestamptz; v_rolled timestamptz;
begin
    if p_keep_days < 1 then raise exception 'traces are kept for one day at least'; end if;
    if not pg_try_advisory_xact_lock(1634166382, -1) then return; end if;
    perform set_config('agentq.tenant', '*', true), set_config('lock_timeout', '200ms', true);
    v_before := clock_timestamp() - make_interval(days => p_keep_days);
    select case when rolled_until is null then 'infinity' else coalesce(sessions_until, '-infinity') end
      into v_rolled from agentq.spend_mark;
    v_before := least(v_before, v_rolled);
    for v_name in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
         where i.inhparent in ('agentq.trace'::regclass, 'agentq.decision'::regclass)
           and c.relname ~ '_\d{8}$'
           and (to_date(right(c.relname, 8), 'YYYYMMDD') + 7)::timestamp at time zone 'UTC' <= v_before
         order by 1
    loop
        execute format('drop table agentq.%I', v_name);
        return next v_name;
    end loop;
    delete from agentq.trace_rest where ended_at < v_before;
    delete from agentq.decision_rest where decided_at < v_before;
exception when lock_not_available then
    return;
end $$;
