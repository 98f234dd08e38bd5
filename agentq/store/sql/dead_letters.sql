-- Dead letters: read by people, brought back in batches. Which letters a selection names is decided by
-- agentq.letters() alone.

-- name: ls
select d.tenant, d.letter_id, d.session_id, d.step_id, d.generation, d.agent, d.agent_version, d.step, d.seq, d.class,
       d.cause, d.cause_text, d.dependency, d.failure, d.attempts, d.attempt, d.crashes, d.state_from, d.cost_micros,
       d.effects_pending, d.effects_unknown, d.state, d.job_id, d.canary, d.changed_by, d.note, d.died_at, d.changed_at
  from agentq.letters(%(selection)s) d
 order by d.died_at desc, d.letter_id limit %(limit)s;

-- name: count
select count(*) from agentq.letters(%(selection)s);

-- name: groups
-- The samples are the least of each group, so that the same list comes out each time.
select case %(by)s::text when 'cause' then d.cause when 'agent' then d.agent || '@' || d.agent_version
                         when 'tenant' then d.tenant when 'step' then d.agent || '.' || d.step
                         when 'dependency' then coalesce(d.dependency, '') else d.class end as key,
       count(*), count(distinct d.tenant), count(distinct d.cause), min(d.cause_text collate "C"), min(d.agent),
       max(d.agent), min(d.died_at), max(d.died_at), sum(d.cost_micros)::bigint,
       count(*) filter (where d.effects_unknown > 0), max(d.generation)
  from agentq.letters(%(selection)s) d
 group by key order by count(*) desc, key limit %(limit)s;

-- name: find
-- Whose letter, session or step begins so: the letter first.
(select tenant, letter_id, state from agentq.dead_letter
  where letter_id between %(low)s and %(high)s and (%(tenant)s::text is null or tenant = %(tenant)s)
  order by died_at desc limit 3)
union all
(select tenant, letter_id, state from agentq.dead_letter
  where (session_id between %(low)s and %(high)s or step_id between %(low)s and %(high)s)
    and (%(tenant)s::text is null or tenant = %(tenant)s)
  order by died_at desc limit 20);

-- name: effects
select effect_key, name, state, calls, claimed_at, settled_at, failure from agentq.effect
 where tenant = %(tenant)s and session_id = %(session)s and state in ('pending', 'unknown')
 order by claimed_at;

-- name: state_of
-- The state that a buried step began from, or an earlier step of its session, as stored; and the version of
-- the agent that wrote it.
select case when e.state_from is null then array[s.input] else agentq.recall(d.tenant, d.session_id, e.state_from) end,
       case when e.state_from is null then coalesce(s.input_version, s.agent_version) else (
            select c.agent_version from agentq.checkpoint c where c.tenant = d.tenant and c.session_id = d.session_id
               and c.step_id = e.state_from) end,
       e.state_from
  from agentq.dead_letter d
  join agentq.session s on s.tenant = d.tenant and s.session_id = d.session_id
  join agentq.ledger_entry e on e.tenant = d.tenant and e.session_id = d.session_id
       and (e.step_id = d.step_id and %(step)s::text is null
            or e.name = %(step)s and e.seq <= d.seq and e.superseded is null)
 where d.tenant = %(tenant)s and d.letter_id = %(letter)s
 order by e.seq desc limit 1;

-- name: effects_open
-- How many of the selected letters' sessions still have effects that are pending or unknown. Only those
-- that had some when they were buried can.
select count(*) filter (where f.pending), count(*) filter (where f.unknown)
  from agentq.letters(%(selection)s) d
 cross join lateral (
       select bool_or(e.state = 'pending') as pending, bool_or(e.state = 'unknown') as unknown from agentq.effect e
        where e.tenant = d.tenant and e.session_id = d.session_id and e.state in ('pending', 'unknown')) f
 where d.effects_pending + d.effects_unknown > 0;

-- name: without_step
-- How many of the selected letters' sessions ran no step of that name before they died.
select count(*) from agentq.letters(%(selection)s) d
 where not exists (select from agentq.ledger_entry l
                    where l.tenant = d.tenant and l.session_id = d.session_id and l.name = %(step)s
                      and l.seq <= d.seq and l.superseded is null);

-- name: spent
-- Letters by agent, in one pass: what their sessions have cost so far, how many came back too often, and
-- how many had effects that were not settled when they were buried.
select d.agent, count(*), avg(d.cost_micros)::bigint, count(*) filter (where d.generation >= %(max_generation)s),
       count(*) filter (where d.effects_pending + d.effects_unknown > 0)
  from agentq.letters(%(selection)s) d group by d.agent order by 2 desc;

-- name: usual_cost
-- What a session of these agents costs that ends well: of the newest ones. Walks an index backwards for each agent;
-- `by_index` of sql/sessions.sql keeps the planner from reading all sessions of an agent instead.
select a.agent, u.samples, u.cost
  from unnest(%(agents)s::text[]) a (agent)
 cross join lateral (
       select count(*) as samples, coalesce(avg(c.cost), 0)::bigint as cost
         from (select s.tenant, s.session_id from agentq.session s
                where s.agent = a.agent and s.state = 'done' and s.created_at > agentq.now() - interval '30 days'
                order by s.created_at desc, s.session_id desc limit %(limit)s) s
        cross join lateral (select coalesce(sum(k.cost_micros), 0) as cost from agentq.checkpoint k
                             where k.tenant = s.tenant and k.session_id = s.session_id) c) u;

-- name: usual_cost_of
-- The same for one tenant, of its newest sessions that ended well, whichever their agent.
select s.agent, count(*), avg(c.cost)::bigint
  from (select n.*, row_number() over (partition by n.agent order by n.created_at desc) as nth
          from (select tenant, session_id, agent, created_at from agentq.session
                 where tenant = %(tenant)s and state = 'done' and created_at > agentq.now() - interval '30 days'
                 order by created_at desc, session_id desc limit 5000) n
         where n.agent = any (%(agents)s::text[])) s
 cross join lateral (select coalesce(sum(k.cost_micros), 0) as cost from agentq.checkpoint k
                      where k.tenant = s.tenant and k.session_id = s.session_id) c
 where s.nth <= %(limit)s
 group by s.agent;

-- name: export
-- For a dataset. Read with a cursor on the server, so that any number passes through little memory.
select d.tenant, d.letter_id, d.session_id, d.step_id, d.generation, d.agent, d.agent_version, d.step, d.seq, d.class,
       d.cause, d.cause_text, d.dependency, d.failure, d.attempts, d.attempt, d.crashes, d.state_from, d.cost_micros,
       d.effects_pending, d.effects_unknown, d.state, d.job_id, d.canary, d.changed_by, d.note, d.died_at, d.changed_at,
       case when %(with_state)s then (
            select case when d.state_from is null then array[s.input]
                        else agentq.recall(d.tenant, d.session_id, d.state_from) end
              from agentq.session s where s.tenant = d.tenant and s.session_id = d.session_id) end
  from agentq.letters(%(selection)s) d
 order by d.died_at, d.letter_id;

-- name: discard
select agentq.discard_letters(%(selection)s, %(operator)s, %(reason)s, %(max)s::int);

-- name: announce
select * from agentq.announce_letters(%(max)s::int);

-- name: open_per_tenant
select * from agentq.open_letters(%(most)s::int);

-- name: announce_again
-- The broker has forgotten them: all open letters of this tenant, or of all of them, are sent again.
update agentq.dead_letter set announced = false
 where state = 'open' and announced and (%(tenant)s::text is null or tenant = %(tenant)s);

-- name: unannounce
update agentq.dead_letter set announced = false where letter_id = any (%(letters)s::uuid[]) and state = 'open';

-- name: tenants
-- By name, after one: those that have letters, open or dealt with; by hops through the index from tenant to tenant.
with recursive hop as (
    (select d.tenant from agentq.dead_letter d where d.tenant > %(after)s order by d.tenant limit 1)
    union all
    select (select d.tenant from agentq.dead_letter d where d.tenant > hop.tenant order by d.tenant limit 1)
      from hop where hop.tenant is not null)
select tenant from hop where tenant is not null limit %(limit)s;

-- name: try_turn
-- One relay at a time; the others find it taken and leave.
select pg_try_advisory_xact_lock(1634166382, -3);

-- name: keep_poison
select agentq.keep_poison(%(tenant)s, %(queue)s, %(reason)s, %(digest)s, %(body)s, %(size)s::int);

-- name: poison
select poison_id, tenant, queue, reason, times, size_bytes, first_at, last_at, body, digest from agentq.poison_message
 where %(tenant)s::text is null or tenant = %(tenant)s
 order by last_at desc, poison_id desc limit %(limit)s;
