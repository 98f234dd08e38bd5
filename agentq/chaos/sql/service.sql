-- The effects service's own record: SQLite, beside and unknown to agentq's Postgres.

-- name: schema
create table if not exists request (
    id integer primary key, what text not null, session text not null, place text not null, kind text not null,
    key text not null, value text not null, pid integer not null, at real not null, until real,
    applied integer not null default 0, fate text not null default 'open'
);
create index if not exists request_key on request (key, applied);

-- name: arrived
insert into request (what, session, place, kind, key, value, pid, at) values (?, ?, ?, ?, ?, ?, ?, ?);

-- name: apply
update request set applied = 1 where id = ?;

-- name: applied
-- The change made under a key.
select session, place, value from request where key = ? and applied = 1 order by id limit 1;

-- name: ended
update request set fate = ?, until = ? where id = ?;

-- name: everything
-- What the judge reads, in the order of arrival.
select id as number, what, session, place, kind, key, value, pid, at, until, applied, fate from request order by id;
