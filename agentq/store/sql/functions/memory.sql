-- Long-term memory: written in versions, found by words and by meaning, and gone when its time is over.
-- How functions are written and replaced: see ledger.sql.


-- What stands for a tenant's namespace, and all below it, in the index of words; '' for all that the tenant has.
create or replace function agentq.memory_scope(p_tenant text, p_namespace text) returns text language sql immutable as
$$ select chr(1) || md5(p_tenant || '/' || p_namespace) $$;


-- The namespaces in which a namespace lies, itself and '' included.
create or replace function agentq.memory_scopes(p_tenant text, p_namespace text) returns text[] language sql immutable as
$$ select array_agg(agentq.memory_scope(p_tenant, array_to_string(parts[1:n], '/')))
     from (select string_to_array(p_namespace, '/') as parts) p, generate_series(0, cardinality(parts)) n $$;


-- One word as a query, whatever marks are in it.
create or replace function agentq.word_query(p_word text) returns tsquery language sql immutable as
$$ select ('''' || replace(replace(p_word, '\', '\\'), '''', '''''') || '''')::tsquery $$;


-- Put a memory's words into the index. As the owner, because the index is closed to the fleet; for what the
-- transaction's tenant can see, and nothing else.
create or replace function agentq.index_memory(p_id bigint, p_tenant text, p_namespace text, p_language text, p_text text)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into agentq.memory_words (memory_id, words)
    select m.memory_id, array_to_tsvector(agentq.memory_scopes(m.tenant, m.namespace))
                        || to_tsvector(p_language::regconfig, p_text)
      from agentq.memory m where m.memory_id = p_id and m.tenant = p_tenant and m.namespace = p_namespace
    on conflict (memory_id) do update set words = excluded.words;
end $$;


-- Take memories out of the index.
create or replace function agentq.unindex_memories(p_ids bigint[]) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    delete from agentq.memory_words w using agentq.memory m
     where w.memory_id = any (p_ids) and m.memory_id = w.memory_id
$$;


-- How much of the index a word stands in, as Postgres has sampled it: the most frequent words alone are known, and
-- every other is at most as frequent as the least of them.
create or replace function agentq.memory_frequencies(p_words text[]) returns real[]
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    with known as materialized (
        select most_common_elems::text::text[] as words, most_common_elem_freqs as freqs from pg_stats
         where schemaname = 'agentq' and tablename = 'memory_words' and attname = 'words'
    )
    select array_agg(coalesce(k.freqs[array_position(k.words, w)], k.freqs[cardinality(k.words)], 0.001) order by n)
      from unnest(p_words) with ordinality x (w, n) left join known k on true $$;


-- The words of a question, and what each says: a rare one much, one that is in every other memory next to nothing.
-- `usual`: too frequent to be looked for, unless there is no other. `few`: the namespace has up to 500 memories,
-- which are counted; of more, the words are taken from the rarest on, until some 1,000 memories are to be expected.
create or replace function agentq.memory_terms(p_namespace text, p_query text, p_language text)
returns table (word text, weight real, usual boolean, few boolean)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
declare
    v_name text := agentq.memory_scope(current_setting('agentq.tenant'), p_namespace);
    v_words text[]; v_queries tsquery[]; v_all tsvector[]; v_freqs real[]; v_scope real; v_count int;
    v_half int;
begin
    select array_agg(t), array_agg(agentq.word_query(t)) into v_words, v_queries from (
        select t from unnest(tsvector_to_array(to_tsvector(p_language::regconfig, left(p_query, 4000)))) t
         order by length(t) desc, t limit 24) longest;
    if v_words is null then return; end if;
    v_freqs := agentq.memory_frequencies(v_name || v_words);
    select greatest(reltuples, 1) * v_freqs[1] into v_scope from pg_class where oid = 'agentq.memory_words'::regclass;
    if v_scope < 5000 then
        select array_agg(w.words) into v_all
          from (select w.words from agentq.memory_words w where w.words @@ agentq.word_query(v_name) limit 501) w;
        v_count := coalesce(cardinality(v_all), 0);
        if v_count <= 500 then
            v_half := greatest(v_count / 2, 3);
            return query
                select t.w, (case when t.n > v_half then 0.05 else ln(1 + greatest(v_count, 1)::real / greatest(t.n, 1)) end)::real,
                       t.n > v_half, true
                  from (select w, (select count(*) from unnest(v_all) d where d @@ q) as n
                          from unnest(v_words, v_queries) x (w, q)) t;
            return;
        end if;
    end if;
    return query
        select f.w, ln(1 + 1 / f.freq)::real,
               sum(f.freq) over (order by f.freq, f.w rows unbounded preceding) * v_scope > 1000
               and row_number() over (order by f.freq, f.w) > 1, false
          from unnest(v_words, v_freqs[2:]) f (w, freq);
end $$;


-- The memories that have one of the words, best first; ids alone, to be read under row security.
create or replace function agentq.matching_memories(
    p_namespace text, p_words text[], p_weights real[], p_usual boolean[], p_few boolean, p_max int
) returns table (memory_id bigint, weight real)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_scope tsquery := agentq.word_query(agentq.memory_scope(current_setting('agentq.tenant'), p_namespace));
    v_any tsquery; v_queries tsquery[];
begin
    select string_agg(agentq.word_query(t.word)::text, ' | ') filter (where not t.usual or true = all (p_usual))::tsquery,
           array_agg(agentq.word_query(t.word)) into v_any, v_queries
      from unnest(p_words, p_usual) t (word, usual);
    if v_any is null then return; end if;
    return query
        select h.memory_id, (select sum(t.weight) from unnest(v_queries, p_weights) t (q, weight) where h.words @@ t.q)::real
          from (
            -- Of few memories all are looked at, which is quicker than looking each word up.
            select f.memory_id, f.words
              from (select w.memory_id, w.words from agentq.memory_words w where p_few and w.words @@ v_scope limit 501) f
             where f.words @@ v_any
            union all
            (select w.memory_id, w.words from agentq.memory_words w
              where not p_few and w.words @@ (v_scope && v_any) limit 5000)) h
         order by 2 desc, 1 desc limit p_max;
end $$;


-- How alike two embeddings are, for the few that are not stored yet.
create or replace function agentq.likeness(a real[], b real[]) returns double precision language sql immutable as $$
    select sum(x * y) / nullif(sqrt(sum(x * x)) * sqrt(sum(y * y)), 0)
      from (select x::double precision, y::double precision from unnest(a, b) as v (x, y)) as pairs $$;


-- The memories nearest in meaning, by pgvector; none where the server does not have it.
create or replace function agentq.near_memories(
    p_tenant text, p_namespace text, p_vector real[], p_embedded_by text, p_max int, p_now timestamptz
) returns table (memory_id bigint, nearness double precision) language plpgsql stable as $$
declare v_schema text;
begin
    select n.nspname into v_schema from pg_extension e join pg_namespace n on n.oid = e.extnamespace
     where e.extname = 'vector' and has_schema_privilege(n.oid, 'usage');
    if v_schema is null or p_vector is null then return; end if;
    return query execute format($query$
        select m.memory_id, 1 - (m.embedding::%1$I.vector operator(%1$I.<=>) $3::%1$I.vector)
          from agentq.memory m
         where m.tenant = $1 and ($2 = '' or m.namespace >= $2 and m.namespace < $2 || '0')
           and ($2 = '' or m.namespace = $2 or starts_with(m.namespace, $2 || '/'))
           and m.embedded_by = $4 and m.gone_at is null and (m.expires_at is null or m.expires_at > $6)
         order by m.embedding::%1$I.vector operator(%1$I.<=>) $3::%1$I.vector limit $5 $query$, v_schema)
    using p_tenant, p_namespace, p_vector, p_embedded_by, p_max, p_now;
end $$;


-- Whether this server compares meanings.
create or replace function agentq.has_vectors() returns boolean language sql stable as
$$ select exists (select from pg_extension where extname = 'vector' and has_schema_privilege(extnamespace, 'usage')) $$;


-- Search a namespace and all below it: by words, and by meaning where a vector is given. What both find comes
-- first (reciprocal ranks added up). `p_pending` is what the asking step has written and not committed yet.
create or replace function agentq.search_memories(
    p_tenant text, p_namespace text, p_query text, p_language text, p_vector real[], p_embedded_by text,
    p_limit int, p_offset int, p_pending jsonb
) returns table (
    namespace text, key text, version int, value bytea, written_at timestamptz, expires_at timestamptz,
    session_id uuid, step_id uuid, agent text, attempt int, written_by text, digest bytea, pending int, score double precision,
    found_by text
) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    v_now timestamptz := agentq.now();
    v_words text[]; v_weights real[]; v_usual boolean[]; v_few boolean;
    v_most int := greatest(p_limit + p_offset, 100) + coalesce(jsonb_array_length(p_pending), 0);
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select array_agg(t.word), array_agg(t.weight), array_agg(t.usual), bool_and(t.few)
      into v_words, v_weights, v_usual, v_few
      from agentq.memory_terms(p_namespace, p_query, p_language) t;
    return query
    with pending as (
        select distinct on (p.ns, p.key) p.n, p.ns, p.key, p.kind, p.text, p.embedding, p.by
          from (select (x.n)::int as n, x.w ->> 'ns' as ns, x.w ->> 'key' as key, x.w ->> 'kind' as kind,
                       x.w ->> 'text' as text, x.w ->> 'embedded_by' as by,
                       (select array_agg(v::real order by i)
                          from jsonb_array_elements_text(nullif(x.w -> 'embedding', 'null')) with ordinality e (v, i)
                       ) as embedding
                  from jsonb_array_elements(coalesce(p_pending, '[]')) with ordinality x (w, n)) p
         order by p.ns, p.key, p.n desc
    ), mine as (
        select * from pending p
         where p.kind = 'put' and p.text is not null
           and (p_namespace = '' or p.ns = p_namespace or starts_with(p.ns, p_namespace || '/'))
    ), texts as (
        select m.memory_id as id, null::int as n, t.weight::double precision as score
          from agentq.matching_memories(p_namespace, v_words, v_weights, v_usual, v_few, v_most) t
          join agentq.memory m on m.memory_id = t.memory_id
         where m.tenant = p_tenant and m.gone_at is null and (m.expires_at is null or m.expires_at > v_now)
           and not exists (select from pending p where (p.ns, p.key) = (m.namespace, m.key))
        union all
        select null, p.n, s.score from mine p,
               lateral (select sum(t.weight)::double precision as score from unnest(v_words, v_weights) t (word, weight)
                         where to_tsvector(p_language::regconfig, p.text) @@ agentq.word_query(t.word)) s
         where s.score is not null
    ), nears as (
        select m.memory_id as id, null::int as n, t.nearness as score
          from agentq.near_memories(p_tenant, p_namespace, p_vector, p_embedded_by, v_most, v_now) t
          join agentq.memory m on m.tenant = p_tenant and m.memory_id = t.memory_id
         where not exists (select from pending p where (p.ns, p.key) = (m.namespace, m.key))
        union all
        select null, p.n, agentq.likeness(p.embedding, p_vector) from mine p
         where p_vector is not null and p.by = p_embedded_by
    ), ranked as (
        select t.id, t.n, 1.0 / (60 + rank() over (order by t.score desc)) as points, 'words' as by from texts t
        union all
        select t.id, t.n, 1.0 / (60 + rank() over (order by t.score desc)), 'meaning' from nears t
    ), best as (
        select r.id, r.n, sum(r.points)::double precision as score,
               case when count(*) > 1 then 'both' else min(r.by) end as by
          from ranked r group by r.id, r.n
    )
    select coalesce(m.namespace, p.ns), coalesce(m.key, p.key), m.version, m.value, m.written_at, m.expires_at,
           m.session_id, m.step_id, m.agent, m.attempt, m.written_by, m.digest, b.n, b.score, b.by
      from best b
      left join agentq.memory m on m.memory_id = b.id and m.tenant = p_tenant
      left join pending p on p.n = b.n
     order by b.score desc, b.n desc nulls last, b.id desc
     limit p_limit offset p_offset;
end $$;


-- One memory as it is now; no row: there is none, or its time is over.
create or replace function agentq.get_memory(p_tenant text, p_namespace text, p_key text)
returns setof agentq.memory language plpgsql as $$
begin
    perform set_config('agentq.tenant', p_tenant, true);
    return query select * from agentq.memory m
     where m.tenant = p_tenant and m.namespace = p_namespace and m.key = p_key and m.gone_at is null
       and (m.expires_at is null or m.expires_at > agentq.now());
end $$;


-- The memories of a namespace and all below it, newest first.
create or replace function agentq.list_memories(p_tenant text, p_namespace text, p_limit int, p_offset int)
returns setof agentq.memory language plpgsql as $$
begin
    perform set_config('agentq.tenant', p_tenant, true);
    return query select * from agentq.memory m
     where m.tenant = p_tenant and (p_namespace = '' or m.namespace >= p_namespace and m.namespace < p_namespace || '0')
       and (p_namespace = '' or m.namespace = p_namespace or starts_with(m.namespace, p_namespace || '/'))
       and m.gone_at is null and (m.expires_at is null or m.expires_at > agentq.now())
     order by m.written_at desc, m.namespace, m.key limit p_limit offset p_offset;
end $$;


-- What a write will meet: the live version (0: none), the version that it will get, and the one that it wrote
-- already, in an attempt or a replay before.
create or replace function agentq.before_memory(p_tenant text, p_namespace text, p_key text, p_op text, p_digest bytea)
returns table (live int, next int, known int) language plpgsql as $$
begin
    perform set_config('agentq.tenant', p_tenant, true);
    return query
        select coalesce(max(m.version) filter (where m.gone_at is null
                                                 and (m.expires_at is null or m.expires_at > agentq.now())), 0),
               coalesce(max(m.version), 0) + 1,
               max(m.version) filter (where m.op = p_op and m.digest = p_digest)
          from agentq.memory m where m.tenant = p_tenant and m.namespace = p_namespace and m.key = p_key;
end $$;


-- Write memories, each as a new version of its key, in the caller's transaction.
--
-- A write whose place (`op`) and content are recorded is not made again. `if_version` names the live version that
-- the writer saw, 0 for none: another raises AQ001, and nothing of the transaction stays. A deletion removes the
-- content of every version at once. Twenty versions of a key are kept.
create or replace function agentq.write_memories(
    p_tenant text, p_writes jsonb, p_session uuid, p_step uuid, p_agent text, p_attempt int, p_by text, p_now timestamptz
) returns table (n int, version int, written boolean) language plpgsql as $$
#variable_conflict use_column
declare w record; h agentq.memory; v_live int; v_lock bigint; v_id bigint;
begin
    -- Whoever writes the same keys waits here, before it looks at them; in one order, so that two never wait for
    -- each other.
    for v_lock in
        select distinct hashtextextended(p_tenant || chr(1) || (x ->> 'ns') || chr(1) || (x ->> 'key'), 1634166387)
          from jsonb_array_elements(p_writes) x order by 1
    loop
        perform pg_advisory_xact_lock(v_lock);
    end loop;
    for w in
        select (x.n)::int as n, x.item ->> 'kind' as kind, x.item ->> 'ns' as ns, x.item ->> 'key' as key,
               x.item ->> 'op' as op, decode(x.item ->> 'digest', 'base64') as digest,
               decode(x.item ->> 'value', 'base64') as value, x.item ->> 'text' as text,
               coalesce(x.item ->> 'language', 'simple') as language, x.item -> 'fields' as fields,
               (x.item ->> 'ttl_s')::double precision as ttl_s, (x.item ->> 'if_version')::int as if_version,
               x.item -> 'embedding' as embedding, x.item ->> 'embedded_by' as embedded_by
          from jsonb_array_elements(p_writes) with ordinality x (item, n) order by x.n
    loop
        n := w.n; written := false;
        select m.version into version from agentq.memory m
         where m.tenant = p_tenant and m.namespace = w.ns and m.key = w.key and m.op = w.op and m.digest = w.digest limit 1;
        if found then return next; continue; end if;
        select * into h from agentq.memory m
         where m.tenant = p_tenant and m.namespace = w.ns and m.key = w.key order by m.version desc limit 1;
        v_live := case when h.gone_at is null and (h.expires_at is null or h.expires_at > p_now) then h.version end;
        if w.if_version <> coalesce(v_live, 0) then
            raise exception 'a memory has changed' using errcode = 'AQ001', detail = jsonb_build_object(
                'namespace', w.ns, 'key', w.key, 'expected', w.if_version, 'found', coalesce(v_live, 0))::text;
        end if;
        if w.kind = 'delete' and v_live is null then version := 0; return next; continue; end if;
        version := coalesce(h.version, 0) + 1; written := true;
        if w.kind = 'delete' then
            delete from agentq.memory m where m.tenant = p_tenant and m.namespace = w.ns and m.key = w.key;
        elsif h.version is not null then
            if h.gone_at is null then
                update agentq.memory m set gone_at = p_now, embedding = null, embedded_by = null
                 where m.memory_id = h.memory_id and m.tenant = p_tenant;
                perform agentq.unindex_memories(array[h.memory_id]);
            end if;
            delete from agentq.memory m
             where m.tenant = p_tenant and m.namespace = w.ns and m.key = w.key and m.version <= h.version - 19;
        end if;
        insert into agentq.memory (tenant, namespace, key, version, value, fields, embedding, embedded_by, digest, op,
                                   session_id, step_id, agent, attempt, written_by, written_at, expires_at, gone_at)
        values (p_tenant, w.ns, w.key, version, w.value,
                case when jsonb_typeof(w.fields) = 'array' then array(select jsonb_array_elements_text(w.fields)) end,
                case when w.embedded_by is not null
                     then array(select v::real from jsonb_array_elements_text(w.embedding) with ordinality e (v, i) order by i) end,
                w.embedded_by, w.digest, w.op, p_session, p_step, p_agent, p_attempt, p_by, p_now,
                p_now + make_interval(secs => w.ttl_s), case w.kind when 'delete' then p_now end)
        returning memory_id into v_id;
        if w.text is not null then perform agentq.index_memory(v_id, p_tenant, w.ns, w.language, w.text); end if;
        return next;
    end loop;
end $$;


-- Write memories from within an effect of a running step: at once, as an effect does, and under its fence. The
-- entry's row is held until the commit, so that nobody takes the step over in between. No row: superseded.
create or replace function agentq.effect_memories(
    p_tenant text, p_session uuid, p_step uuid, p_fence int, p_token bigint, p_agent text, p_writes jsonb
) returns table (n int, version int, written boolean) language plpgsql as $$
#variable_conflict use_column
declare e agentq.ledger_entry;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    select * into e from agentq.ledger_entry l
     where l.tenant = p_tenant and l.session_id = p_session and l.step_id = p_step
       and l.state = 'running' and l.fence = p_fence and l.fence_token = p_token for share;
    if not found then return; end if;
    return query select * from agentq.write_memories(p_tenant, p_writes, p_session, p_step, p_agent, e.attempt, e.name,
                                                     agentq.now());
end $$;


-- Write memories by hand. No row: the tenant's payloads are encrypted, and the caller has not the keys.
create or replace function agentq.put_memories(p_tenant text, p_by text, p_writes jsonb, p_sealed boolean)
returns table (n int, version int, written boolean) language plpgsql as $$
#variable_conflict use_column
begin
    perform set_config('agentq.tenant', p_tenant, true);
    if not p_sealed and exists (select from agentq.tenant_key k where k.tenant = p_tenant and k.state = 'active') then
        return;
    end if;
    return query select * from agentq.write_memories(p_tenant, p_writes, null, null, null, null, p_by, agentq.now());
end $$;


-- Index memories anew, each with its words, its vector and its value as they are to be stored now; one that has been
-- replaced meanwhile is left alone. Returns how many were.
create or replace function agentq.reindex_memories(p_tenant text, p_items jsonb) returns int language plpgsql as $$
declare w record; v_count int := 0;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    for w in
        select (x ->> 'id')::bigint as id, x ->> 'ns' as ns, x ->> 'text' as text, x ->> 'language' as language,
               decode(x ->> 'value', 'base64') as value, x ->> 'embedded_by' as embedded_by,
               case when x ? 'embedded_by' then array(
                    select v::real from jsonb_array_elements_text(x -> 'embedding') with ordinality e (v, i) order by i)
               end as embedding
          from jsonb_array_elements(p_items) x order by 1
    loop
        update agentq.memory m set value = w.value, embedding = w.embedding, embedded_by = w.embedded_by
         where m.tenant = p_tenant and m.memory_id = w.id and m.gone_at is null;
        if found then
            perform agentq.index_memory(w.id, p_tenant, w.ns, w.language, w.text);
            v_count := v_count + 1;
        end if;
    end loop;
    return v_count;
end $$;


-- Remove what is over, up to `p_max` of each kind: memories past their time lose their content; versions that were
-- replaced, and what is left of keys that are gone, go after `p_keep_days`. Returns how many lost their content. One
-- relay at a time.
create or replace function agentq.expire_memories(p_max int, p_keep_days int) returns int language plpgsql as $$
declare v_now timestamptz := agentq.now(); v_over bigint[];
begin
    if not pg_try_advisory_xact_lock(1634166388, 0) then return 0; end if;
    perform set_config('agentq.tenant', '*', true);
    select array_agg(o.memory_id) into v_over from (
        select m.memory_id from agentq.memory m where m.expires_at <= v_now and m.gone_at is null
         order by m.expires_at limit p_max for update skip locked) o;
    perform agentq.empty_memories(v_over, v_now);
    delete from agentq.memory m where (m.tenant, m.memory_id) in (
        select o.tenant, o.memory_id from agentq.memory o
         where o.gone_at < v_now - make_interval(days => p_keep_days) order by o.gone_at limit p_max for update skip locked);
    return coalesce(cardinality(v_over), 0);
end $$;


-- Of the next tenants, memories that are older than their tenant keeps them lose their content, a batch of each. Told
-- is as by agentq.remove_expired_of().
create or replace function agentq.expire_memories_of(p_after text, p_tenants int, p_again text[], p_max int)
returns table (tenant text, memories int, in_turn boolean) language plpgsql as $$
#variable_conflict use_column
declare v_now timestamptz := agentq.now(); k record; v_last text; v_over bigint[];
begin
    if not pg_try_advisory_xact_lock(1634166388, 0) then return; end if;
    perform set_config('agentq.tenant', '*', true);
    for k in select * from agentq.keepers(p_after, p_tenants, p_again) loop
        if k.in_turn then v_last := greatest(v_last, k.tenant); end if;
        if coalesce(k.memory_days, k.retention_days, 0) = 0 then continue; end if;
        select array_agg(o.memory_id) into v_over from (
            select m.memory_id from agentq.memory m
             where m.tenant = k.tenant and m.gone_at is null
               and m.written_at < v_now - make_interval(days => coalesce(k.memory_days, k.retention_days))
             order by m.written_at limit p_max for update skip locked) o;
        if v_over is null then continue; end if;
        perform agentq.empty_memories(v_over, v_now);
        tenant := k.tenant; memories := cardinality(v_over); in_turn := false;
        return next;
    end loop;
    tenant := v_last; memories := 0; in_turn := true;
    if v_last is not null then return next; end if;
end $$;


-- Take the content from memories and from the older versions of their keys; the number stays, so that it is not
-- given twice.
create or replace function agentq.empty_memories(p_ids bigint[], p_now timestamptz) returns void language plpgsql as $$
begin
    if p_ids is null then return; end if;
    delete from agentq.memory o using agentq.memory m
     where m.memory_id = any (p_ids) and o.tenant = m.tenant and o.namespace = m.namespace and o.key = m.key
       and o.version < m.version;
    perform agentq.unindex_memories(p_ids);
    update agentq.memory set value = null, embedding = null, embedded_by = null, gone_at = p_now
     where memory_id = any (p_ids);
end $$;


-- Remove up to `p_max` of a tenant's memories, with their numbers; how many.
create or replace function agentq.remove_memories(p_tenant text, p_max int) returns int language plpgsql as $$
declare v_gone int;
begin
    perform set_config('agentq.tenant', p_tenant, true);
    delete from agentq.memory m where m.tenant = p_tenant and m.memory_id in (
        select o.memory_id from agentq.memory o where o.tenant = p_tenant limit p_max for update skip locked);
    get diagnostics v_gone = row_count;
    return v_gone;
end $$;
