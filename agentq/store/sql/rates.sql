-- Rates: the limits, and the buckets in Postgres.

-- name: limits
select tenant, provider, requests_per_min, tokens_per_min, learned_requests, learned_tokens from agentq.rate_limit
 order by provider, tenant;

-- name: weights
-- Of those whose weight is not one; every few seconds.
select name, weight from agentq.tenant where weight <> 1;

-- name: set
insert into agentq.rate_limit (tenant, provider, requests_per_min, tokens_per_min)
values (%(tenant)s, %(provider)s, %(requests)s, %(tokens)s)
on conflict (tenant, provider) do update
   set requests_per_min = excluded.requests_per_min, tokens_per_min = excluded.tokens_per_min, changed_at = agentq.now();

-- name: learn
insert into agentq.rate_limit as r (tenant, provider, learned_requests, learned_tokens)
values ('*', %(provider)s, %(requests)s, %(tokens)s)
on conflict (tenant, provider) do update
   set learned_requests = coalesce(excluded.learned_requests, r.learned_requests),
       learned_tokens = coalesce(excluded.learned_tokens, r.learned_tokens), changed_at = agentq.now();

-- name: take
select agentq.take_rate(%(provider)s, %(caller)s, %(weight)s::real, %(closed)s::text[], %(buckets)s);

-- name: give_back
select agentq.give_back_rate(%(buckets)s::text[], %(seconds)s::double precision[]);

-- name: close
insert into agentq.rate_bucket as b (bucket, full_at) values (%(bucket)s, agentq.now() + make_interval(secs => %(seconds)s))
on conflict (bucket) do update set full_at = greatest(b.full_at, excluded.full_at);

-- name: forget
with gone as (delete from agentq.rate_caller where seen_at < agentq.now() - interval '1 hour')
delete from agentq.rate_bucket where full_at < agentq.now() - interval '1 hour';
