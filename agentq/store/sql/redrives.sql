-- Redrives: jobs that bring letters back, and the policies that begin them.

-- name: begin
-- The same command again goes on with the job that it left; a new one begins where none is under way.
insert into agentq.redrive_job (job_id, same_as, operator, reason, policy, selection, terms, state, until, matched)
select %(job)s, %(same_as)s, %(operator)s, %(reason)s, %(policy)s, %(selection)s, %(terms)s,
       case when %(canary)s > 0 then 'canary' else 'running' end, agentq.now(),
       (select count(*) from agentq.letters(%(selection)s || '{"state": "open"}'))
    on conflict (same_as) where ended_at is null do nothing
returning job_id;

-- name: under_way
select job_id from agentq.redrive_job where same_as = %(same_as)s and ended_at is null;

-- name: go_on
-- Taken up again: from the first letter, because those that were refused may be fit now.
update agentq.redrive_job
   set cursor_at = null, cursor_letter = null, refused = 0, until = agentq.now(), terms = terms || %(terms)s,
       matched = redriven + (select count(*) from agentq.letters(%(selection)s || '{"state": "open"}'))
 where job_id = %(job)s and ended_at is null;

-- name: take_turn
-- One process drives a job at a time; whoever asks meanwhile follows it.
update agentq.redrive_job set driver = %(driver)s, driver_until = agentq.now() + make_interval(secs => %(lease_s)s)
 where job_id = %(job)s and ended_at is null and (driver = %(driver)s or driver_until is null or driver_until < agentq.now())
returning job_id;

-- name: leave
update agentq.redrive_job set driver = null, driver_until = null where job_id = %(job)s and driver = %(driver)s;

-- name: get
select job_id, operator, reason, policy, selection, terms, state, matched, redriven, refused,
       case when driver_until > agentq.now() then driver end, created_at,
       waiting_since, ended_at, note, extract(epoch from agentq.now() - waiting_since)::double precision
  from agentq.redrive_job where job_id = %(job)s;

-- name: recent
select job_id, operator, reason, policy, selection, terms, state, matched, redriven, refused,
       case when driver_until > agentq.now() then driver end, created_at,
       waiting_since, ended_at, note, extract(epoch from agentq.now() - waiting_since)::double precision
  from agentq.redrive_job order by created_at desc limit %(limit)s;

-- name: next
select * from agentq.redrive_next(%(job)s, %(max)s::int, %(canary)s);

-- name: candidates
-- The selection comes as a value, so that the planner sees which filters there are.
select d.tenant, d.letter_id
  from agentq.letters(%(selection)s || '{"state": "open"}') d, agentq.redrive_job j
 where j.job_id = %(job)s and d.died_at <= j.until
   and (j.cursor_at is null or (d.died_at, d.letter_id) > (j.cursor_at, j.cursor_letter))
 order by d.died_at, d.letter_id limit %(max)s;

-- name: edited
select agentq.redrive_edited(%(job)s, %(tenant)s, %(letter)s, %(state)s, %(edit)s::uuid, %(canary)s);

-- name: pass_over
update agentq.redrive_job j set cursor_at = d.died_at, cursor_letter = d.letter_id, refused = refused + 1
  from agentq.dead_letter d where d.tenant = %(tenant)s and d.letter_id = %(letter)s and j.job_id = %(job)s;

-- name: canaries
select * from agentq.canaries(%(job)s);

-- name: canary_count
select count(*) from agentq.dead_letter where job_id = %(job)s and canary;

-- name: move_on
update agentq.redrive_job
   set state = %(state)s, waiting_since = case when %(state)s = 'waiting' then agentq.now() end,
       ended_at = case when %(state)s in ('done', 'stopped') then agentq.now() end, note = coalesce(%(note)s, note)
 where job_id = %(job)s and ended_at is null
returning job_id;

-- name: outcomes
-- What became of the letters that a job brought back.
select state, count(*) from agentq.dead_letter where job_id = %(job)s group by state;

-- name: set_policy
insert into agentq.redrive_policy (name, selection, quiet_s, canary, threshold, rate_per_s, max_generation, enabled,
                                   operator, reason)
values (%(name)s, %(selection)s, %(quiet_s)s, %(canary)s, %(threshold)s, %(rate_per_s)s, %(max_generation)s, %(enabled)s,
        %(operator)s, %(reason)s)
    on conflict (name) do update set selection = excluded.selection, quiet_s = excluded.quiet_s, canary = excluded.canary,
       threshold = excluded.threshold, rate_per_s = excluded.rate_per_s, max_generation = excluded.max_generation,
       enabled = excluded.enabled, operator = excluded.operator, reason = excluded.reason, changed_at = agentq.now();

-- name: remove_policy
delete from agentq.redrive_policy where name = %(name)s returning name;

-- name: policies
select p.name, p.selection, p.quiet_s, p.canary, p.threshold, p.rate_per_s, p.max_generation, p.enabled, p.operator,
       p.reason, p.changed_at
  from agentq.redrive_policy p where %(name)s::text is null or p.name = %(name)s order by p.name;

-- name: policies_due
-- Policies whose trouble is over: letters wait that may be brought back, nothing that matches has died for a
-- while, and no breaker of the dependency that they name is open. A breaker that has closed since the last
-- death knows more than a pause does.
select p.name, p.selection, p.quiet_s, p.canary, p.threshold, p.rate_per_s, p.max_generation, p.enabled, p.operator,
       p.reason, p.changed_at
  from agentq.redrive_policy p
 cross join lateral (
       select max(d.died_at) filter (where d.state in ('open', 'redriven', 'redriving')) as last_at,
              bool_or(d.state = 'open' and d.generation < p.max_generation) as waiting
         from agentq.letters(p.selection - 'state') d
        where d.state in ('open', 'redriving', 'redriven')) d
 where p.enabled and d.waiting
   and (d.last_at < agentq.now() - make_interval(secs => p.quiet_s)
        or exists (select from agentq.dependency x
                    where x.name = p.selection ->> 'dependency' and x.tenant in ('*', p.selection ->> 'tenant')
                      and x.state = 'closed' and x.changed_at > d.last_at))
   and not exists (select from agentq.dependency x
                    where x.name = p.selection ->> 'dependency' and x.tenant in ('*', p.selection ->> 'tenant')
                      and x.state in ('open', 'half_open', 'forced_open'))
   and not exists (select from agentq.redrive_job j where j.policy = p.name
                      and (j.ended_at is null or j.ended_at > agentq.now() - make_interval(secs => p.quiet_s)))
 order by p.name;

-- name: policy_jobs
-- Jobs that policies began and that are not over.
select job_id from agentq.redrive_job where policy is not null and ended_at is null order by created_at;
