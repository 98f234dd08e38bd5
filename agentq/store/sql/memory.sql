-- Memories as Python asks for them. What each function does, and why, stands with it.

-- name: get
select namespace, key, version, value, written_at, expires_at, session_id, step_id, agent, attempt, written_by,
       digest
  from agentq.get_memory(%(tenant)s, %(namespace)s, %(key)s);

-- name: list
select namespace, key, version, value, written_at, expires_at, session_id, step_id, agent, attempt, written_by,
       digest
  from agentq.list_memories(%(tenant)s, %(namespace)s, %(limit)s::int, %(offset)s::int);

-- name: versions
-- Every version of a key that is kept, newest first, and since when it is read no more.
select namespace, key, version, value, written_at, expires_at, session_id, step_id, agent, attempt, written_by,
       digest, gone_at
  from agentq.memory
 where tenant = %(tenant)s and namespace = %(namespace)s and key = %(key)s order by version desc;

-- name: namespaces
select namespace, count(*) from agentq.memory
 where tenant = %(tenant)s and gone_at is null and (expires_at is null or expires_at > agentq.now())
   and (%(namespace)s = '' or namespace = %(namespace)s or starts_with(namespace, %(namespace)s || '/'))
 group by namespace order by namespace limit %(limit)s;

-- name: search
select * from agentq.search_memories(%(tenant)s, %(namespace)s, %(query)s, %(language)s, %(vector)s::real[],
                                     %(embedded_by)s, %(limit)s::int, %(offset)s::int, %(pending)s);

-- name: before
select * from agentq.before_memory(%(tenant)s, %(namespace)s, %(key)s, %(op)s, %(digest)s);

-- name: put
select * from agentq.put_memories(%(tenant)s, %(by)s, %(writes)s, %(sealed)s);

-- name: put_in_effect
select * from agentq.effect_memories(%(tenant)s, %(session)s, %(step)s, %(fence)s::int, %(token)s::bigint, %(agent)s,
                                     %(writes)s);

-- name: to_index
-- In portions, by number: what lives and is to be searched.
select memory_id, namespace, key, version, value, digest, fields, embedding, embedded_by from agentq.memory
 where tenant = %(tenant)s and memory_id > %(after)s and gone_at is null and fields is distinct from '{}'
   and (expires_at is null or expires_at > agentq.now())
 order by memory_id limit %(max)s;

-- name: reindex
select agentq.reindex_memories(%(tenant)s, %(items)s);

-- name: expire
select agentq.expire_memories(%(max)s::int, %(keep_days)s::int);

-- name: expire_of
select * from agentq.expire_memories_of(%(after)s, %(tenants)s::int, %(again)s::text[], %(max)s::int);

-- name: remove
select agentq.remove_memories(%(tenant)s, %(max)s::int);

-- name: has_language
select exists (select from pg_ts_config where cfgname = %(language)s and cfgnamespace = 'pg_catalog'::regnamespace);

-- name: has_vectors
select agentq.has_vectors();
