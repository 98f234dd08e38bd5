-- A month of a fleet's work, made up by Postgres: see benchmarks/archive.py.

-- name: ready
-- Bulk: the rows are made as they must be, so nothing checks foreign keys.
set session_replication_role = replica; set synchronous_commit = off; set work_mem = '64MB';

-- name: draw
-- Numbers and ids that look random and are the same in every run.
create function pg_temp.draw(i bigint, salt int) returns double precision language sql immutable parallel safe as
$$ select (hashint8extended(i, salt) & 1048575) / 1048576.0 $$;
create function pg_temp.id(at timestamptz, of text) returns uuid language sql immutable parallel safe as
$$ select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || substr(md5(of), 1, 20))::uuid $$;

-- name: tenants
insert into agentq.tenant (name, concurrency, weight, placed_at)
select 'bench-' || lpad(n::text, 2, '0'), 10, 1, now() from generate_series(0, %(tenants)s - 1) n;

-- name: weeks
-- The weeks of the past, as they were made when they were to come.
do $$
declare p text; w timestamptz; name text;
begin
    perform set_config('agentq.tenant', '*', true);
    foreach p in array array['trace', 'decision'] loop
        for i in 1..6 loop
            w := date_trunc('week', clock_timestamp(), 'UTC') - make_interval(days => 7 * i);
            name := p || '_' || to_char(w at time zone 'UTC', 'YYYYMMDD');
            execute format('create table agentq.%I (like agentq.%I including all)', name, p);
            execute format('alter table agentq.%I owner to agentq_owner', name);
            perform agentq.guard_partition(name);
            execute format('alter table agentq.%I attach partition agentq.%I for values from (%L) to (%L)', p, name, w,
                           w + interval '7 days');
        end loop;
    end loop;
end $$;

-- name: reached
-- Now, how far sums have come, and the last session.
select clock_timestamp(), (select rolled_until from agentq.spend_mark),
       (select created_at from agentq.session where key like 'ticket-%' order by created_at desc limit 1);

-- name: sessions
-- In the order of their time, as a fleet adds them.
insert into agentq.session (tenant, session_id, agent, agent_version, key, state, input, input_hash, result, failure, hold,
                            created_at, ended_at)
select 'bench-' || lpad(floor(%(tenants)s * power(d1, 3))::text, 2, '0'), pg_temp.id(at, 'session ' || i),
       'agent-' || floor(%(agents)s * power(d2, 2)), 1, 'ticket-' || i, state,
       convert_to(format('{"ticket": "order %%s does not arrive, customer %%s is %%s"}', i, i %% 977,
                         (array['angry', 'patient', 'new', 'gone'])[1 + i %% 4]), 'UTF8'), 'h',
       case when state = 'done' then convert_to('"refunded"', 'UTF8') end,
       case when state in ('failed', 'cancelled') then jsonb_build_object('kind', 'permanent', 'type', 'Error' || i %% 300,
            'message', 'the carrier answers nothing about ' || i %% 300) end,
       case when state = 'paused' then jsonb_build_object('kind', 'operator', 'reason', 'looked at') end,
       at, case when state not in ('running', 'paused') then at + interval '2 minutes' end
  from (select i, pg_temp.draw(i, 1) as d1, pg_temp.draw(i, 2) as d2,
               %(from)s + (%(until)s - %(from)s) * (i::double precision / %(sessions)s) as at,
               case when i > %(ended)s then 'running' when pg_temp.draw(i, 3) < 0.001 then 'paused'
                    when pg_temp.draw(i, 3) < 0.026 then 'failed' when pg_temp.draw(i, 3) < 0.036 then 'cancelled'
                    else 'done' end as state
          from generate_series(%(low)s::bigint + 1, %(high)s::bigint) i) drawn;

-- name: traces
-- Steps in turn a model request and a tool call, each an attempt with one event.
insert into agentq.trace (tenant, session_id, step_id, fence, ordinal, ended_at, kind, name, agent, agent_version, seq,
                          attempt, queued_at, started_at, closing, worker, leads_to, tokens_in, tokens_out, cost_micros,
                          detail, input, output)
select s.tenant, s.session_id, pg_temp.id(began, s.session_id::text || j), 1, o.ordinal,
       began + make_interval(secs => 5 + o.ordinal * -0.1),
       case when o.ordinal = 0 then 'attempt' when m.model then 'model' else 'tool' end,
       case when o.ordinal = 0 then (array['think', 'act'])[1 + j %% 2] when m.model then m.name
            else 'tool-' || floor(8 * power(pg_temp.draw(n.i, j + 40), 2)) end,
       s.agent, 1, j, 1, began, began + interval '1 second' * o.ordinal,
       case when o.ordinal = 0 then case when s.state = 'failed' and j = %(steps)s - 1 then 'dead'
                                         when j = %(steps)s - 1 then 'end' when pg_temp.draw(n.i, j + 20) < 0.03 then 'retry'
                                         else 'next' end end,
       gen.worker, case when o.ordinal = 0 and j < %(steps)s - 1 then (array['act', 'think'])[1 + j %% 2] end,
       case when m.model then m.tokens else 0 end, case when m.model then m.tokens / 8 else 0 end,
       case when m.model then m.tokens * 3 else 0 end,
       case when o.ordinal = 1 and m.model then jsonb_build_object('model', m.name, 'provider', 'openai', 'cached_tokens', 100)
            when o.ordinal = 1 then jsonb_build_object('outcome', 'done') end,
       case when o.ordinal = 1 then convert_to(repeat('what the customer wrote ', 4), 'UTF8') end,
       case when o.ordinal = 1 then convert_to(repeat('what was answered ', 3), 'UTF8') end
  from agentq.session s
 cross join lateral (select substr(s.key, 8)::bigint as i) n
 cross join (select gen_random_uuid() as worker) gen
 cross join generate_series(0, %(steps)s - 1) j
 cross join (values (0), (1)) o (ordinal)
 cross join lateral (select j %% 2 = 0 as model, 'model-' || floor(5 * power(pg_temp.draw(n.i, j + 60), 2)) as name,
                            500 + floor(4000 * pg_temp.draw(n.i, j + 80))::bigint as tokens,
                            s.created_at + make_interval(secs => j * 15) as began) m
 where s.key like 'ticket-%%' and s.created_at > %(from)s + (%(until)s - %(from)s) * (%(low)s::double precision / %(sessions)s)
   and s.created_at <= %(from)s + (%(until)s - %(from)s) * (%(high)s::double precision / %(sessions)s)
   and not (o.ordinal = 1 and j = 0 and n.i %% 50 = 0)
   and (s.state <> 'running' or j < %(steps)s - 1);

-- name: rest
-- The first and the last step of each session, their states, and a reservation of the first call.
insert into agentq.ledger_entry (tenant, session_id, step_id, seq, name, state, attempt, fence, attempts_max, timeout_s, path,
                                 due_at, queued_at, started_at, settled_at, failure, state_from)
select s.tenant, s.session_id, pg_temp.id(s.created_at + make_interval(secs => j * 15), s.session_id::text || j), j,
       (array['think', 'act'])[1 + j %% 2], e.state, 1, 1, 3, 60, gen_random_uuid(), s.created_at, s.created_at, s.created_at,
       case when e.state in ('done', 'dead', 'cancelled') then s.created_at + interval '1 minute' end,
       case when e.state = 'dead' then s.failure end, null
  from (select *, case when state in ('running', 'paused') then 'held' when state = 'failed' then 'dead'
                       when state = 'cancelled' then 'cancelled' else 'done' end as last from agentq.session) s
 cross join (values (0), (%(steps)s - 1)) k (j)
 cross join lateral (select case when j = 0 then 'done' else s.last end as state) e
 where s.key like 'ticket-%%' and s.created_at > %(from)s + (%(until)s - %(from)s) * (%(low)s::double precision / %(sessions)s)
   and s.created_at <= %(from)s + (%(until)s - %(from)s) * (%(high)s::double precision / %(sessions)s);
insert into agentq.checkpoint (tenant, session_id, step_id, kind, state, agent_version, cost_micros, tokens_in, tokens_out,
                               saved_at)
select e.tenant, e.session_id, e.step_id, 'full', convert_to('{"order": 4711, "notes": "the customer waits"}', 'UTF8'), 1,
       3000, 1000, 125, e.settled_at
  from agentq.ledger_entry e join agentq.session s using (tenant, session_id)
 where s.key like 'ticket-%%' and e.state = 'done' and s.created_at > %(from)s + (%(until)s - %(from)s) * (%(low)s::double precision / %(sessions)s)
   and s.created_at <= %(from)s + (%(until)s - %(from)s) * (%(high)s::double precision / %(sessions)s);
insert into agentq.reservation (tenant, reservation_id, session_id, step_id, fence, agent, provider, model, price_version, day,
                                month, state, input_tokens, max_tokens, reserved_micros, charged_micros, used_input,
                                used_cached, used_output, at, settled_at, settled_by)
select t.tenant, t.session_id || ':' || t.step_id || ':1:1', t.session_id, t.step_id, 1, t.agent, 'openai',
       'model-' || floor(5 * power(pg_temp.draw(substr(s.key, 8)::bigint, 60), 2)), 'bench',
       date_trunc('day', t.ended_at, 'UTC'), date_trunc('month', t.ended_at, 'UTC'), 'charged', t.tokens_in, 1000,
       t.cost_micros, t.cost_micros, t.tokens_in, 0, t.tokens_out, t.started_at, t.ended_at, 'settlement'
  from agentq.session s join agentq.trace t using (tenant, session_id)
 where s.key like 'ticket-%%' and t.ordinal = 0 and t.seq = 0
   and s.created_at > %(from)s + (%(until)s - %(from)s) * (%(low)s::double precision / %(sessions)s)
   and s.created_at <= %(from)s + (%(until)s - %(from)s) * (%(high)s::double precision / %(sessions)s)
   and t.ended_at >= %(from)s + (%(until)s - %(from)s) * (%(low)s::double precision / %(sessions)s)
   and t.ended_at <= %(from)s + (%(until)s - %(from)s) * (%(high)s::double precision / %(sessions)s) + interval '1 day';

-- name: people
-- What waits for people, or did; sums of the budgets.
insert into agentq.budget_window (tenant, scope, subject, period, starts_at, spent_micros, spent_tokens, calls)
select tenant, 'session', session_id::text, 'session', to_timestamp(0), sum(charged_micros), sum(used_input + used_output),
       count(*) from agentq.reservation group by 1, 3;
insert into agentq.budget_window (tenant, scope, subject, period, starts_at, spent_micros, spent_tokens, calls)
select tenant, 'tenant', '', 'day', day, sum(charged_micros), sum(used_input + used_output), count(*)
  from agentq.reservation group by 1, 5
union all
select tenant, 'tenant', '', 'month', month, sum(charged_micros), sum(used_input + used_output), count(*)
  from agentq.reservation group by 1, 5;
insert into agentq.budget (tenant, scope, subject, period, cost_micros, on_refusal)
select name, 'tenant', '', 'day', 100000000, 'wait' from agentq.tenant;
insert into agentq.dead_letter (tenant, letter_id, session_id, step_id, generation, agent, agent_version, step, seq, class,
                                cause, cause_text, failure, attempts, attempt, crashes, cost_micros, effects_pending,
                                effects_unknown, state, announced, died_at, changed_at)
select s.tenant, gen_random_uuid(), s.session_id, e.step_id, 0, s.agent, 1, e.name, e.seq, 'permanent',
       left(md5(s.failure ->> 'type'), 12), 'the carrier answers nothing about N', s.failure, jsonb_build_array(s.failure), 1, 0, 9000, 0,
       0, case when substr(s.key, 8)::bigint %% 5 < 3 then 'open' else 'discarded' end, true, s.ended_at, s.ended_at
  from agentq.session s
  join agentq.ledger_entry e on e.tenant = s.tenant and e.session_id = s.session_id and e.state = 'dead'
 where s.state = 'failed';
insert into agentq.approval (tenant, approval_id, session_id, step_id, fence, generation, kind, name, args, args_hash, question,
                             groups, state, asked_at, deadline_at, decided_at, decided_by, decided_via)
select tenant, gen_random_uuid(), session_id, gen_random_uuid(), 1, 0, 'ask', 'refund', '{"amount": 120}', 'h', 'Refund this order?',
       '{finance}', case when old then 'granted' else 'open' end, created_at, created_at + interval '40 days',
       case when old then created_at + interval '1 hour' end, case when old then 'jane' end, case when old then 'login' end
  from (select *, created_at < %(until)s - interval '1 day' as old from agentq.session
         where substr(key, 8)::bigint %% 50 = 7) s;
insert into agentq.anomaly (tenant, session_id, agent, agent_version, measure, rule, value, low, high, runs, why, running, state,
                            found_at, seen_at, muted_at, muted_by)
select tenant, session_id, agent, 1, 'cost', 'p99', 9, 1, 2, 500, 'cost 9, usually 1 to 2', false,
       case when i %% 3 = 0 then 'open' else 'muted' end, ended_at, ended_at, case when i %% 3 > 0 then ended_at end,
       case when i %% 3 > 0 then 'jane' end
  from (select *, substr(key, 8)::bigint / 100 as i from agentq.session
         where substr(key, 8)::bigint %% 100 = 3 and ended_at is not null) s;
insert into agentq.effect (tenant, effect_key, session_id, step_id, fence, name, args_hash, state, result, failure, claimed_at,
                           settled_at)
select tenant, session_id || ':pay', session_id, gen_random_uuid(), 1, 'pay', 'h', case when i %% 1000 = 0 then 'unknown' else 'done' end,
       case when i %% 1000 > 0 then convert_to('"ok"', 'UTF8') end, case when i %% 1000 = 0 then '{"kind": "unknown"}'::jsonb end,
       created_at, created_at
  from (select *, substr(key, 8)::bigint as i from agentq.session where substr(key, 8)::bigint %% 5 = 0) s;
