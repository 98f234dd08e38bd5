-- Anomalies: what live sessions have used so far, when they are looked at, and what is said of them.
-- How functions are written and replaced: see ledger.sql.


-- Two counts by name, added up; bounded, because names may be a user's own.
create or replace function agentq.add_counts(a jsonb, b jsonb) returns jsonb language sql immutable as $$
    select case when b is null then a when a is null then b else (
        select jsonb_object_agg(name, n) from (
            select x.name, sum(x.n::bigint) as n
              from (select * from jsonb_each_text(a) as p (name, n) union all
                    select * from jsonb_each_text(b) as q (name, n)) x
             group by x.name order by 2 desc, 1 limit 100) y) end
$$;


-- Add an attempt to its session's row, in the transaction that ends it. The row is looked at every eighth
-- attempt, so that a session that runs away is found while it runs, before it sleeps for a minute or more, and
-- once more when it has ended.
-- Sessions never wait for each other here; branches of one take turns, each until its commit.
create or replace function agentq.tally(
    e agentq.ledger_entry, p_agent text, p_version int, p_closing text, p_now timestamptz, p_failure jsonb, p_plan jsonb
) returns void language plpgsql as $$
declare
    v_failed boolean := p_closing in ('retry', 'repair', 'dead', 'fail', 'lost');
    -- Marked here already, so that the end itself need not write the row again.
    v_look boolean := p_closing in ('end', 'fail', 'dead') and e.join_step is null;
    v_busy bigint := greatest(extract(epoch from p_now - e.started_at) * 1000, 0)::bigint;
    v_tokens bigint := 0; v_cost bigint := 0; v_tools jsonb; v_classes jsonb;
begin
    if p_plan ? 'usage' then
        v_tokens := coalesce((p_plan -> 'usage' ->> 'tokens_in')::bigint, 0) + coalesce((p_plan -> 'usage' ->> 'tokens_out')::bigint, 0);
        v_cost := coalesce((p_plan -> 'usage' ->> 'cost_micros')::bigint, 0);
    end if;
    if p_plan ? 'trace' then
        select jsonb_object_agg(name, n) into v_tools
          from (select left(x ->> 'name', 100) as name, count(*) as n from jsonb_array_elements(p_plan -> 'trace') x
                 where x ->> 'kind' = 'tool' group by 1 limit 100) as calls;
    end if;
    if v_failed and p_failure ? 'kind' then
        v_classes := jsonb_build_object(p_failure ->> 'kind', 1);
    end if;
    if p_plan ? 'steps' then
        v_look := v_look or exists (
            select from jsonb_array_elements(p_plan -> 'steps') s where (s ->> 'delay_s')::double precision >= 60);
    end if;
    loop
        -- The update first: it is what nearly all attempts need, and costs less than an insert that conflicts.
        update agentq.session_tally t
           set steps = t.steps + 1, failures = t.failures + v_failed::int, tokens = t.tokens + v_tokens,
               cost_micros = t.cost_micros + v_cost, busy_ms = t.busy_ms + v_busy,
               tools = case when v_tools is null then t.tools else agentq.add_counts(t.tools, v_tools) end,
               classes = case when v_classes is null then t.classes else agentq.add_counts(t.classes, v_classes) end,
               agent_version = p_version, due = t.due or v_look or (t.steps + 1) % 8 = 0
         where t.tenant = e.tenant and t.session_id = e.session_id;
        exit when found;
        insert into agentq.session_tally (
            tenant, session_id, agent, agent_version, steps, failures, tokens, cost_micros, busy_ms, tools, classes, due)
        values (e.tenant, e.session_id, p_agent, p_version, 1, v_failed::int, v_tokens, v_cost, v_busy, v_tools,
                v_classes, v_look)
        on conflict do nothing;
        exit when found;  -- or another branch was first
    end loop;
end $$;


-- Have a session looked at between two of its looks: it stops here for long, and whoever decides how it goes on
-- is to know whether it is as usual. The session's row is held.
create or replace function agentq.look_at(p_tenant text, p_session uuid) returns void language sql as $$
    update agentq.session_tally set due = true where tenant = p_tenant and session_id = p_session and not due
$$;


-- Sessions that run and are to be looked at. Their mark is taken away at once: judging them holds up no settlement.
create or replace function agentq.tallies_running(p_max int) returns setof agentq.session_tally language plpgsql as $$
begin
    perform set_config('agentq.tenant', '*', true), set_config('synchronous_commit', 'off', true);
    return query
        -- Materialized: as a plain subquery it may be run once for each row of `t`; see tests/store/test_plans.py.
        with found as materialized (
            select d.tenant, d.session_id from agentq.session_tally d
             cross join lateral (select o.state from agentq.session o  -- by the key; see tallies_ended
                                  where o.tenant = d.tenant and o.session_id = d.session_id offset 0) s
             where d.due and s.state in ('running', 'paused') limit p_max for update of d skip locked)
        update agentq.session_tally t set due = false from found
         where t.tenant = found.tenant and t.session_id = found.session_id
        returning t.*;
end $$;


-- Sessions that ended, each once: their rows go in the transaction that learns from them.
create or replace function agentq.tallies_ended(p_max int)
returns table (tally agentq.session_tally, state text, first_run boolean, ended_at timestamptz) language sql as $$
    with found as materialized (
        select d.tenant, d.session_id, s.state, s.generation = 0 and s.forked_from is null as first_run, s.ended_at
          from agentq.session_tally d
         -- By the key, and `offset 0` keeps it so: by statistics of before a burst nothing has ended, and the index by
         -- state looks as good. It was walked over all that had, for each session that was looked at.
         cross join lateral (select * from agentq.session o
                              where o.tenant = d.tenant and o.session_id = d.session_id offset 0) s
         where d.due and s.state in ('done', 'failed', 'cancelled') limit p_max for update of d skip locked)
    delete from agentq.session_tally t using found
     where t.tenant = found.tenant and t.session_id = found.session_id
    returning t, found.state, found.first_run, found.ended_at
$$;


-- Write an anomaly down, once for a session and measure; a later look may raise its value. `fresh`: it was not known.
-- What is done beside is what the operator's most specific order says: nothing, park the session, or be silent.
create or replace function agentq.raise_anomaly(
    p_tenant text, p_session uuid, p_agent text, p_version int, p_measure text, p_rule text, p_value double precision,
    p_low double precision, p_high double precision, p_runs bigint, p_why text, p_running boolean, p_channels text[]
) returns table (fresh boolean, anomaly_id uuid, state text, parked boolean) language plpgsql as $$
#variable_conflict use_column
declare v_now timestamptz := agentq.now(); v_action text; v_operator text;
begin
    perform set_config('agentq.tenant', '*', true);
    select o.action, o.operator into v_action, v_operator from agentq.anomaly_order o
     where o.tenant in (p_tenant, '*') and o.agent in (p_agent, '') and o.measure in (p_measure, '')
       and (o.until is null or o.until > v_now)
     order by o.tenant <> '*' desc, o.agent <> '' desc, o.measure <> '' desc limit 1;
    insert into agentq.anomaly as a (tenant, session_id, agent, agent_version, measure, rule, value, low, high, runs, why,
                                     running, state, found_at, seen_at, muted_at, muted_by)
    values (p_tenant, p_session, p_agent, p_version, p_measure, p_rule, p_value, p_low, p_high, p_runs, p_why,
            p_running, case v_action when 'mute' then 'muted' else 'open' end, v_now, v_now,
            case v_action when 'mute' then v_now end, case v_action when 'mute' then v_operator end)
    on conflict on constraint anomaly_once do update
       set value = greatest(a.value, excluded.value), seen_at = v_now,
           why = case when excluded.value > a.value then excluded.why else a.why end
    returning a.xmax = 0, a.anomaly_id, a.state into fresh, anomaly_id, state;
    parked := false;
    if fresh then
        if v_action = 'park' and p_running then
            parked := (select r.changed from agentq.pause_session(p_tenant, p_session, jsonb_build_object(
                'kind', 'anomaly', 'by', v_operator, 'reason', p_why, 'evidence', jsonb_build_object('anomaly', anomaly_id)
            )) r);
            perform set_config('agentq.tenant', '*', true);
            if parked then
                update agentq.anomaly a set parked = true where a.tenant = p_tenant and a.anomaly_id = anomaly_id;
            end if;
        end if;
        if state = 'open' then
            insert into agentq.notice (tenant, anomaly_id, kind, channel, due_at)
            select p_tenant, anomaly_id, 'anomaly', c.channel, v_now from unnest(p_channels) as c (channel);
        end if;
    end if;
    return next;
end $$;
