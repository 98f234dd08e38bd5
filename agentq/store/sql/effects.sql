-- Effects: claimed before the call, settled after it.

-- name: claim_effect
select * from agentq.claim_effect(%(tenant)s, %(key)s, %(session)s, %(step)s, %(fence)s::int, %(token)s::bigint,
                                  %(name)s, %(hash)s, %(durable)s, %(dry)s);

-- name: take_over_effect
select agentq.take_over_effect(%(tenant)s, %(key)s, %(session)s, %(step)s, %(fence)s::int, %(token)s::bigint,
                               %(calling)s);

-- name: settle_effect
select agentq.settle_effect(%(tenant)s, %(key)s, %(session)s, %(step)s, %(fence)s::int, %(state)s, %(result)s,
                            %(failure)s);

-- name: effect_result
-- For reading on in a result that was too long to be shown whole; a session reads its own only.
select result from agentq.effect
 where tenant = %(tenant)s and effect_key = %(key)s and session_id = %(session)s and state = 'done';

-- name: give_back_effect
select agentq.give_back_effect(%(tenant)s, %(key)s, %(session)s, %(step)s, %(fence)s::int);

-- name: resolve_effect
select * from agentq.resolve_effect(%(tenant)s, %(key)s, %(done)s, %(result)s, %(failure)s, %(by)s, %(dry)s);

-- name: effects
-- `held`: the step that called it runs now.
select e.tenant, e.effect_key, e.name, e.state, e.calls, e.session_id, e.step_id, l.name, s.state, e.failure,
       e.resolved_by, e.claimed_at, e.settled_at, l.state = 'running' and l.fence = e.fence, null::bytea
  from agentq.effect e
  join agentq.session s on s.tenant = e.tenant and s.session_id = e.session_id
  left join agentq.ledger_entry l on l.tenant = e.tenant and l.session_id = e.session_id and l.step_id = e.step_id
 where (%(tenant)s::text is null or e.tenant = %(tenant)s) and e.state = any (%(states)s::text[])
   and (%(session)s::uuid is null or e.session_id = %(session)s)
 order by e.claimed_at desc limit %(limit)s;

-- name: effect
-- The tenants' keys are their own: without a tenant there may be several.
select e.tenant, e.effect_key, e.name, e.state, e.calls, e.session_id, e.step_id, l.name, s.state, e.failure,
       e.resolved_by, e.claimed_at, e.settled_at, l.state = 'running' and l.fence = e.fence, e.result
  from agentq.effect e
  join agentq.session s on s.tenant = e.tenant and s.session_id = e.session_id
  left join agentq.ledger_entry l on l.tenant = e.tenant and l.session_id = e.session_id and l.step_id = e.step_id
 where e.effect_key = %(key)s and (%(tenant)s::text is null or e.tenant = %(tenant)s)
 order by e.tenant limit 2;
