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
