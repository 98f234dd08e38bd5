-- Tokens that let producers in through the broker. The token itself is nowhere, only its digest.

-- name: create
insert into agentq.api_token (token_id, name, digest, tenants, agents, created_by, expires_at)
values (%(token)s, %(name)s, %(digest)s, %(tenants)s, %(agents)s, %(by)s,
        agentq.now() + make_interval(secs => %(expires_s)s::double precision));

-- name: get
-- By its id alone: the digest is compared in constant time, outside.
select token_id, name, digest, tenants, agents, revoked_at is null and (expires_at is null or expires_at > agentq.now())
  from agentq.api_token where token_id = %(token)s;

-- name: used
-- Once a minute is often enough to tell whether it is still in use.
update agentq.api_token set used_at = agentq.now()
 where token_id = %(token)s and (used_at is null or used_at < agentq.now() - interval '1 minute');

-- name: guarded
-- Whether a tenant has a token that counts: then nobody submits for it without one.
select exists (select from agentq.api_token
                where %(tenant)s = any (tenants) and revoked_at is null
                  and (expires_at is null or expires_at > agentq.now()));

-- name: ls
select token_id, name, tenants, agents, created_by, created_at, expires_at, used_at, revoked_at,
       case when revoked_at is not null then 'revoked' when expires_at <= agentq.now() then 'expired' else 'live' end
  from agentq.api_token
 where %(tenant)s::text is null or %(tenant)s = any (tenants)
 order by created_at desc;

-- name: find
select token_id from agentq.api_token where token_id between %(low)s and %(high)s limit 3;

-- name: revoke
update agentq.api_token set revoked_at = agentq.now() where token_id = %(token)s and revoked_at is null
returning token_id;

-- name: revoke_of_tenant
-- With its tenant, a token loses that part of its scope; one that was for nobody else is revoked.
update agentq.api_token
   set revoked_at = case when cardinality(array_remove(tenants, %(tenant)s)) = 0 then coalesce(revoked_at, agentq.now())
                         else revoked_at end,
       tenants = case when cardinality(array_remove(tenants, %(tenant)s)) = 0 then tenants
                      else array_remove(tenants, %(tenant)s) end
 where %(tenant)s = any (tenants)
returning token_id;
