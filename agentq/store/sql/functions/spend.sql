-- What was used and paid, summed up by hour and day: from the traces, after the fact, off every hot path.
--
-- What an attempt used belongs to the hour in which it was settled, with all of its calls. Until an hour is rolled
-- up it is read from the traces, so at any moment
--
--     all that was ever used = the rolled rows + the traces of attempts that ended from `spend_mark.rolled_until` on
--
-- The hour that runs is added up every five minutes, so that a report reads a few minutes of traces, however busy the
-- fleet is. What each session used is summed up beside it, by a mark of its own (`sessions_until`).
--
-- An attempt's `ended_at` is the database's clock within the transaction that writes it. So nothing can be added to
-- a time any more once every transaction is over that ran when it was. What changes later (a call of a lost
-- attempt that is settled late) is taken out of the rolled rows and put in again by whoever changes it.
--
-- Who writes rolled rows, or changes traces that they are made of, holds the mark: the roller for itself, the rare
-- corrections beside each other.


-- What attempts used that ended in [p_from, p_to), summed up by hour, agent and name. Without `p_tools`, attempts
-- and models alone. Of an attempt that used nothing nothing is told but its tools.
--
-- A session counts where it was first seen: the attempt that first used something, and the first use of a model or
-- tool. So counts of any hours can be added up.
--
-- Waste is what attempts that came to nothing were paid for, and repairs: the calls of other attempts that are marked
-- as one. Repairs are told apart within it: those calls, and whole attempts whose answer was to be repaired.
create or replace function agentq.spend_lines(
    p_from timestamptz, p_to timestamptz, p_tenant text, p_sessions uuid[], p_tools boolean
) returns table (
    tenant text, starts_at timestamptz, kind text, agent text, name text, uses bigint, sessions bigint, tokens_in bigint,
    tokens_out bigint, cost_micros bigint, waste_micros bigint, tokens_cached bigint, took_us bigint, recalled bigint,
    sandbox_us bigint, repairs bigint, repair_micros bigint
) language plpgsql stable set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
    return query
    with seen as materialized (
        select distinct t.tenant, t.session_id from agentq.trace t
         where t.kind = 'attempt' and t.ended_at >= p_from and t.ended_at < p_to
           and (p_tools or t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0)
           and (p_tenant is null or t.tenant = p_tenant) and (p_sessions is null or t.session_id = any (p_sessions))
    ), begun as materialized (
        -- Of its own, so that a session is looked for in the weeks since its beginning alone.
        select s.tenant, s.session_id, coalesce(o.created_at, '-infinity') as begun_at
          from seen s left join agentq.session o on o.tenant = s.tenant and o.session_id = s.session_id
    ), traced as (
        -- All of these sessions from their beginning, so that it is known what they had used before.
        select t.tenant, t.session_id, t.step_id, t.fence, t.ordinal, t.kind, t.agent, t.ended_at, t.tokens_in,
               t.tokens_out, t.cost_micros, coalesce(t.closing not in ('next', 'end', 'fail'), false) as wasted,
               coalesce(t.closing = 'repair', false) as mended, coalesce((t.detail ->> 'repairs')::bigint, 0) as repairs,
               coalesce((t.detail ->> 'repair_micros')::bigint, 0) as repair_micros,
               t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0 as used, t.name,
               coalesce(t.detail ->> 'model', t.name) as model, coalesce(t.detail -> 'repair' = 'true', false) as repair,
               case when jsonb_typeof(t.detail -> 'cached_tokens') = 'number'
                    then (t.detail -> 'cached_tokens')::numeric::bigint else 0 end as cached,
               coalesce(t.detail ->> 'outcome' = 'recalled', false) as recalled,
               coalesce(t.detail -> 'sandbox' = 'true', false) as sandbox,
               (extract(epoch from t.ended_at - t.started_at) * 1000000)::bigint as took_us
          from begun b
          join agentq.trace t on t.tenant = b.tenant and t.session_id = b.session_id and t.ended_at >= b.begun_at
         where (t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0
                or p_tools and (t.ordinal = 0 or t.kind = 'tool'))
           and (t.ordinal > 0 or t.ended_at < p_to)
           and t.ended_at < p_to + interval '1 day'  -- of calls: no further weeks
    ), act as materialized (
        -- By windows and not by joins: nothing tells the planner how many rows these are.
        select t.*, max(t.ended_at) filter (where t.ordinal = 0) over attempt as settled_at,
               bool_or(t.wasted) over attempt as came_to_nothing, bool_or(t.mended) over attempt as was_mended,
               coalesce(bool_or(t.used) filter (where t.ordinal = 0) over attempt, false) as attempt_used,
               coalesce(sum(t.tokens_in) filter (where t.ordinal > 0) over attempt, 0) as told_in,
               coalesce(sum(t.tokens_out) filter (where t.ordinal > 0) over attempt, 0) as told_out,
               coalesce(sum(t.cost_micros) filter (where t.ordinal > 0) over attempt, 0) as told_micros,
               array_agg(t.model) filter (where t.ordinal > 0 and t.used) over attempt as told_models
          from traced t
        window attempt as (partition by t.tenant, t.session_id, t.step_id, t.fence)
    ), untold as (
        -- Reserved calls that no event of their attempt tells of: steps that do not trace them, and attempts that
        -- were lost. Only where they fit into what the events leave of the attempt's usage, so that none counts twice.
        select a.tenant, a.session_id, a.step_id, a.fence, a.settled_at, a.agent, r.model, r.used_input, r.used_output,
               r.used_cached, coalesce(r.charged_micros, 0) as micros, a.came_to_nothing, a.was_mended,
               a.tokens_in - a.told_in >= sum(r.used_input) over calls
               and a.tokens_out - a.told_out >= sum(r.used_output) over calls
               and a.cost_micros - a.told_micros >= sum(coalesce(r.charged_micros, 0)) over calls as fits
          from act a join agentq.reservation r using (tenant, session_id, step_id, fence)
         where a.ordinal = 0 and a.used and r.state in ('charged', 'uncertain')
           and (a.tokens_in > a.told_in or a.tokens_out > a.told_out or a.cost_micros > a.told_micros)
           and (a.told_models is null or r.model <> all (a.told_models))
        window calls as (partition by a.tenant, a.session_id, a.step_id, a.fence)
    ), line as (
        select tenant, session_id, step_id, fence, settled_at, 'attempt' as kind, agent, '' as name, 1 as uses, tokens_in,
               tokens_out, cost_micros, case when wasted then cost_micros else repair_micros end as waste_micros,
               0::bigint as cached, 0::bigint as took_us, 0 as recalled, 0::bigint as sandbox_us,
               case when mended then 1 else repairs end as repairs,
               case when mended then cost_micros else repair_micros end as repair_micros
          from act where ordinal = 0 and used
        union all
        select tenant, session_id, step_id, fence, settled_at, 'model', agent, model, 1, tokens_in, tokens_out, cost_micros,
               case when came_to_nothing or repair then cost_micros else 0 end, cached, took_us, 0, 0,
               (was_mended or repair)::int, case when was_mended or repair then cost_micros else 0 end
          from act where ordinal > 0 and used and attempt_used
        union all
        select tenant, session_id, step_id, fence, settled_at, 'model', agent, model, 1, used_input, used_output, micros,
               case when came_to_nothing then micros else 0 end, coalesce(used_cached, 0), 0, 0, 0,
               was_mended::int, case when was_mended then micros else 0 end
          from untold where fits
        union all
        select tenant, session_id, step_id, fence, settled_at, 'tool', agent, name, (not recalled)::int, tokens_in,
               tokens_out, cost_micros, 0, 0, case when recalled then 0 else took_us end, recalled::int,
               case when sandbox and not recalled then took_us else 0 end, 0, 0
          from act where p_tools and kind = 'tool'
    ), counted as (
        select l.*, row_number() over (partition by l.tenant, l.session_id, l.kind, l.name
                                           order by l.settled_at, l.step_id, l.fence) as nth
          from line l
    )
    select c.tenant, date_trunc('hour', c.settled_at, 'UTC'), c.kind, c.agent, c.name, sum(c.uses)::bigint,
           count(*) filter (where c.nth = 1), sum(c.tokens_in)::bigint, sum(c.tokens_out)::bigint,
           sum(c.cost_micros)::bigint, sum(c.waste_micros)::bigint, sum(c.cached)::bigint, sum(c.took_us)::bigint,
           sum(c.recalled)::bigint, sum(c.sandbox_us)::bigint, sum(c.repairs)::bigint, sum(c.repair_micros)::bigint
      from counted c
     where c.settled_at >= p_from and c.settled_at < p_to
     group by 1, 2, 3, 4, 5;
end $$;


-- Add what attempts used that ended in [p_from, p_to), or with `p_sign` -1 take it out, to the hours, and to the days
-- that are summed up already. The mark is the caller's. Models and tools are there once more for the tenant '*', all
-- tenants together, so that reports of the whole fleet read a few rows; always in one order, because these are shared.
create or replace function agentq.add_spend(
    p_from timestamptz, p_to timestamptz, p_tenant text, p_sessions uuid[], p_sign int, p_days_until timestamptz
) returns int language plpgsql as $$
declare v_rows int; v_whose text := current_setting('agentq.tenant', true);
begin
    perform set_config('agentq.tenant', '*', true);
    with lines as materialized (
        select * from agentq.spend_lines(p_from, p_to, p_tenant, p_sessions, true)
    ), shared as materialized (
        select w.tenant, l.starts_at, l.kind, l.agent, l.name, p_sign * sum(l.uses) as uses, p_sign * sum(l.sessions) as sessions,
               p_sign * sum(l.tokens_in) as tokens_in, p_sign * sum(l.tokens_out) as tokens_out,
               p_sign * sum(l.cost_micros) as cost_micros, p_sign * sum(l.waste_micros) as waste_micros,
               p_sign * sum(l.tokens_cached) as tokens_cached, p_sign * sum(l.took_us) as took_us,
               p_sign * sum(l.recalled) as recalled, p_sign * sum(l.sandbox_us) as sandbox_us,
               p_sign * sum(l.repairs) as repairs, p_sign * sum(l.repair_micros) as repair_micros
          from lines l cross join lateral (values (l.tenant), ('*')) w (tenant)
         where w.tenant <> '*' or l.kind <> 'attempt'
         group by 1, 2, 3, 4, 5
    ), days as (
        insert into agentq.spend_day as d
        select s.tenant, date_trunc('day', s.starts_at, 'UTC'), s.kind, s.agent, s.name, sum(s.uses), sum(s.sessions),
               sum(s.tokens_in), sum(s.tokens_out), sum(s.cost_micros), sum(s.waste_micros), sum(s.tokens_cached),
               sum(s.took_us), sum(s.recalled), sum(s.sandbox_us), sum(s.repairs), sum(s.repair_micros)
          from shared s where s.starts_at < p_days_until group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4, 5
        on conflict (tenant, starts_at, kind, agent, name) do update
           set uses = d.uses + excluded.uses, sessions = d.sessions + excluded.sessions,
               tokens_in = d.tokens_in + excluded.tokens_in, tokens_out = d.tokens_out + excluded.tokens_out,
               cost_micros = d.cost_micros + excluded.cost_micros, waste_micros = d.waste_micros + excluded.waste_micros,
               tokens_cached = d.tokens_cached + excluded.tokens_cached, took_us = d.took_us + excluded.took_us,
               recalled = d.recalled + excluded.recalled, sandbox_us = d.sandbox_us + excluded.sandbox_us,
               repairs = d.repairs + excluded.repairs, repair_micros = d.repair_micros + excluded.repair_micros
    )
    insert into agentq.spend_hour as h
    select * from shared order by 1, 2, 3, 4, 5
    on conflict (tenant, starts_at, kind, agent, name) do update
       set uses = h.uses + excluded.uses, sessions = h.sessions + excluded.sessions,
           tokens_in = h.tokens_in + excluded.tokens_in, tokens_out = h.tokens_out + excluded.tokens_out,
           cost_micros = h.cost_micros + excluded.cost_micros, waste_micros = h.waste_micros + excluded.waste_micros,
           tokens_cached = h.tokens_cached + excluded.tokens_cached, took_us = h.took_us + excluded.took_us,
           recalled = h.recalled + excluded.recalled, sandbox_us = h.sandbox_us + excluded.sandbox_us,
           repairs = h.repairs + excluded.repairs, repair_micros = h.repair_micros + excluded.repair_micros;
    get diagnostics v_rows = row_count;
    perform set_config('agentq.tenant', coalesce(v_whose, ''), true);
    return v_rows;
end $$;


-- What each session used by attempts that ended in [p_from, p_to), added to its row, or with `p_sign` -1 taken out.
-- How many sessions that were. The mark is the caller's.
create or replace function agentq.add_session_spend(
    p_from timestamptz, p_to timestamptz, p_tenant text, p_sessions uuid[], p_sign int
) returns int language plpgsql set plan_cache_mode = force_custom_plan as $$
declare v_rows int; v_whose text := current_setting('agentq.tenant', true);
begin
    perform set_config('agentq.tenant', '*', true);
    insert into agentq.spend_session as x (tenant, session_id, agent, day, first_at, last_at, uses, tokens_in, tokens_out,
                                           cost_micros, waste_micros, repairs, repair_micros)
    select t.tenant, t.session_id, min(t.agent), date_trunc('day', max(t.ended_at), 'UTC'), min(t.ended_at), max(t.ended_at),
           p_sign * count(*), p_sign * sum(t.tokens_in), p_sign * sum(t.tokens_out), p_sign * sum(t.cost_micros),
           p_sign * coalesce(sum(case when t.closing not in ('next', 'end', 'fail') then t.cost_micros
                                      else (t.detail ->> 'repair_micros')::bigint end), 0),
           p_sign * coalesce(sum(case t.closing when 'repair' then 1 else (t.detail ->> 'repairs')::bigint end), 0),
           p_sign * coalesce(sum(case t.closing when 'repair' then t.cost_micros
                                                else (t.detail ->> 'repair_micros')::bigint end), 0)
      from agentq.trace t
     where t.kind = 'attempt' and (t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0)
       and t.ended_at >= p_from and t.ended_at < p_to
       and (p_tenant is null or t.tenant = p_tenant) and (p_sessions is null or t.session_id = any (p_sessions))
     group by 1, 2 order by 1, 2
    on conflict (tenant, session_id) do update
       set first_at = least(x.first_at, excluded.first_at), last_at = greatest(x.last_at, excluded.last_at),
           day = greatest(x.day, excluded.day), uses = x.uses + excluded.uses,
           tokens_in = x.tokens_in + excluded.tokens_in, tokens_out = x.tokens_out + excluded.tokens_out,
           cost_micros = x.cost_micros + excluded.cost_micros, waste_micros = x.waste_micros + excluded.waste_micros,
           repairs = x.repairs + excluded.repairs, repair_micros = x.repair_micros + excluded.repair_micros;
    get diagnostics v_rows = row_count;
    perform set_config('agentq.tenant', coalesce(v_whose, ''), true);
    return v_rows;
end $$;


-- One turn of the roller: sums up what is closed of the next hour, or the next day whose hours all are, or what
-- sessions used of an hour that is summed up. Whoever comes while another turns leaves at once. Returns what was done:
-- hour | day | sessions | closing, or null when there was nothing.
create or replace function agentq.roll_spend(p_grace_s double precision) returns text language plpgsql as $$
declare
    -- The real clock too: a clock that a test has moved must not close times that are still to come.
    v_end timestamptz := date_bin('5 minutes', least(agentq.now(), clock_timestamp()) - make_interval(secs => p_grace_s),
                                  '2000-01-01 00:00:00+00');
    m agentq.spend_mark; v_since timestamptz; v_from timestamptz; v_day timestamptz;
begin
    perform set_config('agentq.tenant', '*', true);
    select * into m from agentq.spend_mark;
    -- Without a lock, because this is what nearly every turn finds.
    if m.closing_until is null and m.closed_until >= v_end and m.rolled_until >= m.closed_until
        and m.sessions_until >= m.rolled_until
        and m.days_until = date_trunc('day', m.rolled_until, 'UTC') then return null; end if;
    select * into m from agentq.spend_mark for update skip locked;
    if not found then return null; end if;

    if m.closing_until is not null then
        if not exists (select from pg_locks where locktype = 'virtualxid' and virtualxid = any (m.waits_for)) then
            update agentq.spend_mark set closed_until = closing_until, closing_until = null, waits_for = null
            returning * into m;
        end if;
    elsif m.closed_until is null or m.closed_until < v_end then
        update agentq.spend_mark set closing_until = v_end, waits_for = agentq.transactions_now();
        return 'closing';
    end if;
    if m.closed_until is null then return null; end if;

    v_from := coalesce(m.rolled_until, agentq.first_spend(m.closed_until));
    v_day := coalesce(m.days_until, date_trunc('day', v_from, 'UTC'));
    if v_day + interval '1 day' <= v_from then
        perform agentq.sum_up_day(v_day);
        update agentq.spend_mark set days_until = v_day + interval '1 day';
        return 'day';
    end if;
    if v_from < m.closed_until or m.rolled_until is null then
        -- Hours without anything are passed over at once, to the end of their day.
        while v_from < m.closed_until loop
            v_since := v_from;
            v_from := least(date_trunc('hour', v_since, 'UTC') + interval '1 hour', m.closed_until);
            exit when agentq.add_spend(v_since, v_from, null, null, 1, v_day) > 0
                   or v_from = date_trunc('day', v_from, 'UTC');
        end loop;
        update agentq.spend_mark set rolled_until = v_from, days_until = v_day;
        return 'hour';
    end if;
    v_from := coalesce(m.sessions_until, agentq.first_spend(m.rolled_until));
    if v_from >= m.rolled_until and m.sessions_until is not null then return null; end if;
    while v_from < m.rolled_until loop
        v_since := v_from;
        v_from := least(date_trunc('hour', v_since, 'UTC') + interval '1 hour', m.rolled_until);
        exit when agentq.add_session_spend(v_since, v_from, null, null, 1) > 0 or v_from = date_trunc('day', v_from, 'UTC');
    end loop;
    update agentq.spend_mark set sessions_until = v_from;
    return 'sessions';
end $$;


-- Where a window begins that ends now. To the second within an hour; two days at most begin with a whole hour, longer
-- ones with a whole day: so that whole rows of the sums make it up, and none of its beginning is read from traces.
create or replace function agentq.spend_since(p_seconds double precision) returns timestamptz language sql stable as $$
    select case when p_seconds > 172800 then date_trunc('day', w.since, 'UTC')
                when p_seconds > 3600 then date_trunc('hour', w.since, 'UTC') else w.since end
      from (select agentq.now() - make_interval(secs => p_seconds) as since) w
$$;


-- What sessions used within a window, the dearest first, so many at most: those of each day by an index, from which the
-- day's dearest are taken; beside them the sessions that go on, and those that had begun before the window, which are
-- as many as there are at one moment, whatever the window.
--
-- A session that had begun before counts as none of the window's, like everywhere; of what it used within the window
-- is told what traces are there of.
create or replace function agentq.spend_of_sessions(p_since timestamptz, p_tenant text, p_agent text, p_max int)
returns table (
    session_id uuid, uses bigint, sessions bigint, tokens_in bigint, tokens_out bigint, cost_micros bigint,
    waste_micros bigint, repairs bigint, repair_micros bigint
) language plpgsql stable set plan_cache_mode = force_custom_plan set enable_seqscan = off as $$
#variable_conflict use_column
declare
    v_day timestamptz := date_trunc('day', p_since, 'UTC');
    v_summed timestamptz := coalesce((select m.sessions_until from agentq.spend_mark m), '-infinity');
    v_until timestamptz := greatest(v_summed, p_since);
begin
    return query
    with recent as materialized (
        select t.tenant, t.session_id, count(*) as uses, sum(t.tokens_in) as tokens_in, sum(t.tokens_out) as tokens_out,
               sum(t.cost_micros) as cost_micros,
               coalesce(sum(case when t.closing not in ('next', 'end', 'fail') then t.cost_micros
                                 else (t.detail ->> 'repair_micros')::bigint end), 0) as waste_micros,
               coalesce(sum(case t.closing when 'repair' then 1 else (t.detail ->> 'repairs')::bigint end), 0) as repairs,
               coalesce(sum(case t.closing when 'repair' then t.cost_micros
                                           else (t.detail ->> 'repair_micros')::bigint end), 0) as repair_micros
          from agentq.trace t
         where t.kind = 'attempt' and (t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0) and t.ended_at >= v_until
           and (p_tenant is null or t.tenant = p_tenant) and (p_agent is null or t.agent = p_agent)
         group by 1, 2
    ), going_on as materialized (
        select r.*, x.uses as more, x.tokens_in as more_in, x.tokens_out as more_out, x.cost_micros as more_micros,
               x.waste_micros as more_waste, x.repairs as more_repairs, x.repair_micros as more_repair_micros,
               -- Not all that was before the window is summed up while weeks are, after an upgrade.
               coalesce(x.first_at < p_since, false) or v_summed < p_since and exists (
                   select from agentq.trace t
                    where t.tenant = r.tenant and t.session_id = r.session_id and t.ended_at < p_since
                      and t.kind = 'attempt' and (t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0)) as began_before
          from recent r left join agentq.spend_session x on x.tenant = r.tenant and x.session_id = r.session_id
    ), before as materialized (
        select g.tenant, g.session_id from going_on g where g.began_before
        union
        select x.tenant, x.session_id from agentq.spend_session x
         where x.first_at < x.day and x.first_at < p_since and x.last_at >= p_since
           and (p_tenant is null or x.tenant = p_tenant) and (p_agent is null or x.agent = p_agent)
        union
        select x.tenant, x.session_id from agentq.spend_session x
         where x.day = v_day and x.first_at < p_since and x.last_at >= p_since
           and (p_tenant is null or x.tenant = p_tenant) and (p_agent is null or x.agent = p_agent)
    ), told as (
        select d.session_id, d.uses, 1 as sessions, d.tokens_in, d.tokens_out, d.cost_micros, d.waste_micros, d.repairs,
               d.repair_micros
          from generate_series(v_day, date_trunc('day', agentq.now(), 'UTC'), '24 hours') of (day)
         cross join lateral (
            select x.* from agentq.spend_session x
             where x.day = of.day and x.first_at >= p_since
               and (p_tenant is null or x.tenant = p_tenant) and (p_agent is null or x.agent = p_agent)
               and not exists (select from recent r where r.tenant = x.tenant and r.session_id = x.session_id)
             order by x.cost_micros desc, x.session_id limit p_max) d
        union all
        select g.session_id, g.uses + coalesce(g.more, 0), 1, g.tokens_in + coalesce(g.more_in, 0),
               g.tokens_out + coalesce(g.more_out, 0), g.cost_micros + coalesce(g.more_micros, 0),
               g.waste_micros + coalesce(g.more_waste, 0), g.repairs + coalesce(g.more_repairs, 0),
               g.repair_micros + coalesce(g.more_repair_micros, 0)
          from going_on g where not g.began_before
        union all
        select b.session_id, w.uses, 0, w.tokens_in, w.tokens_out, w.cost_micros, w.waste_micros, w.repairs,
               w.repair_micros
          from before b
         cross join lateral (
            select count(*) as uses, sum(t.tokens_in) as tokens_in, sum(t.tokens_out) as tokens_out,
                   sum(t.cost_micros) as cost_micros,
                   coalesce(sum(case when t.closing not in ('next', 'end', 'fail') then t.cost_micros
                                     else (t.detail ->> 'repair_micros')::bigint end), 0) as waste_micros,
                   coalesce(sum(case t.closing when 'repair' then 1 else (t.detail ->> 'repairs')::bigint end), 0) as repairs,
                   coalesce(sum(case t.closing when 'repair' then t.cost_micros
                                               else (t.detail ->> 'repair_micros')::bigint end), 0) as repair_micros
              from agentq.trace t
             where t.tenant = b.tenant and t.session_id = b.session_id and t.ended_at >= p_since and t.kind = 'attempt'
               and (t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0)) w
    )
    select t.session_id, t.uses::bigint, t.sessions::bigint, t.tokens_in::bigint, t.tokens_out::bigint,
           t.cost_micros::bigint, t.waste_micros::bigint, t.repairs::bigint, t.repair_micros::bigint
      from told t where t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0
     order by t.cost_micros desc, t.session_id limit p_max;
end $$;


-- The transactions that run now, but this one. All of them: which ones write traces is not to be seen.
create or replace function agentq.transactions_now() returns text[] language sql volatile as $$
    select coalesce(array_agg(l.virtualxid), '{}')
      from pg_locks l join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'virtualxid' and l.pid <> pg_backend_pid()
       and a.datid = (select oid from pg_database where datname = current_database())
$$;


-- The hour from which on there can be traces.
create or replace function agentq.first_spend(p_otherwise timestamptz) returns timestamptz language sql stable as $$
    select least(p_otherwise, (select min(starts_at) from agentq.spend_hour), date_trunc('hour', greatest(
        (select min(created_at) from agentq.session),
        least((select min(ended_at) from agentq.trace_rest),
              (select to_date(min(right(c.relname, 8)), 'YYYYMMDD')::timestamp at time zone 'UTC'
                 from pg_inherits i join pg_class c on c.oid = i.inhrelid
                where i.inhparent = 'agentq.trace'::regclass and c.relname ~ '_\d{8}$'))), 'UTC'))
$$;


-- Sum up a day from its hours, and forget the hours of the days that nobody asks for by the hour any more.
create or replace function agentq.sum_up_day(p_day timestamptz) returns void language sql as $$
    insert into agentq.spend_day as d
    select h.tenant, p_day, h.kind, h.agent, h.name, sum(h.uses), sum(h.sessions), sum(h.tokens_in), sum(h.tokens_out),
           sum(h.cost_micros), sum(h.waste_micros), sum(h.tokens_cached), sum(h.took_us), sum(h.recalled),
           sum(h.sandbox_us), sum(h.repairs), sum(h.repair_micros)
      from agentq.spend_hour h
     where h.kind in ('attempt', 'model', 'tool') and h.starts_at >= p_day and h.starts_at < p_day + interval '1 day'
     group by h.tenant, h.kind, h.agent, h.name
    on conflict (tenant, starts_at, kind, agent, name) do update
       set uses = d.uses + excluded.uses, sessions = d.sessions + excluded.sessions,
           tokens_in = d.tokens_in + excluded.tokens_in, tokens_out = d.tokens_out + excluded.tokens_out,
           cost_micros = d.cost_micros + excluded.cost_micros, waste_micros = d.waste_micros + excluded.waste_micros,
           tokens_cached = d.tokens_cached + excluded.tokens_cached, took_us = d.took_us + excluded.took_us,
           recalled = d.recalled + excluded.recalled, sandbox_us = d.sandbox_us + excluded.sandbox_us,
           repairs = d.repairs + excluded.repairs, repair_micros = d.repair_micros + excluded.repair_micros;
    delete from agentq.spend_hour
     where kind in ('attempt', 'model', 'tool') and starts_at < p_day - interval '3 days';
$$;


-- Before an attempt's calls are settled without it: when its row is rolled up already, take what its session used out
-- of the sums. True: it was, and `put_back_spend` must follow in the same transaction.
create or replace function agentq.take_out_spend(p_tenant text, p_session uuid, p_step uuid, p_fence int)
returns boolean language plpgsql as $$
declare v_ended timestamptz; m agentq.spend_mark;
begin
    select t.ended_at into v_ended
      from agentq.session s
      join agentq.trace t on t.tenant = s.tenant and t.session_id = s.session_id and t.ended_at >= s.created_at
     where s.tenant = p_tenant and s.session_id = p_session and t.step_id = p_step and t.fence = p_fence and t.ordinal = 0;
    if not found then return false; end if;
    -- The roller waits for the end of this transaction from here on, or this one for the roller's.
    select * into m from agentq.spend_mark for share;
    if m.rolled_until is null or v_ended >= m.rolled_until then return false; end if;
    -- One correction of a session at a time; and retention, which keeps what it removes, not meanwhile.
    perform pg_advisory_xact_lock(1634166389, hashtext(p_session::text));
    perform from agentq.session where tenant = p_tenant and session_id = p_session for key share;
    if not found then return false; end if;
    perform agentq.add_spend('-infinity', m.rolled_until, p_tenant, array[p_session], -1, m.days_until);
    perform agentq.add_session_spend('-infinity', m.sessions_until, p_tenant, array[p_session], -1);
    return true;
end $$;


create or replace function agentq.put_back_spend(p_tenant text, p_session uuid) returns void language plpgsql as $$
declare m agentq.spend_mark;
begin
    select * into m from agentq.spend_mark;
    perform agentq.add_spend('-infinity', m.rolled_until, p_tenant, array[p_session], 1, m.days_until);
    perform agentq.add_session_spend('-infinity', m.sessions_until, p_tenant, array[p_session], 1);
end $$;


-- Before sessions are removed with their traces: keep what they used since the last hour that is rolled up.
create or replace function agentq.keep_spend(p_tenant text, p_sessions uuid[]) returns void language plpgsql as $$
declare m agentq.spend_mark;
begin
    select * into m from agentq.spend_mark for share;
    perform agentq.add_spend(coalesce(m.rolled_until, '-infinity'), 'infinity', p_tenant, p_sessions, 1, m.days_until);
end $$;
