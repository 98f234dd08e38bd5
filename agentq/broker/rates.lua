-- Take from every bucket, or from none: the seconds to wait, 0 when all gave; then for each bucket how many seconds
-- of it were taken, and how long until they have come back by themselves. See agentq/store/sql/functions/rates.sql.
-- KEYS: epoch, callers (a sorted set), their weights (a hash), closed times ..., buckets ...
-- ARGV: caller, weight, how many closed, then for each bucket: each_s, burst, cost, share (0 or 1)
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local caller, weight, closed = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

-- A broker that was wiped has forgotten what was used: for a minute new buckets begin as used up.
local born = tonumber(redis.call('GET', KEYS[1]) or '0')
if born == 0 then
    born = now
    redis.call('SET', KEYS[1], string.format('%.6f', now))
end
local young = now - born < 60

local sum = tonumber(redis.call('HGET', KEYS[3], ' sum') or '0')
local known = tonumber(redis.call('HGET', KEYS[3], caller) or '0')
if known ~= weight then
    sum = sum - known + weight
    redis.call('HSET', KEYS[3], caller, weight)
end
redis.call('ZADD', KEYS[2], now, caller)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - 60)) do
    sum = sum - tonumber(redis.call('HGET', KEYS[3], gone) or '0')
    redis.call('HDEL', KEYS[3], gone)
    redis.call('ZREM', KEYS[2], gone)
end
if redis.call('ZCARD', KEYS[2]) <= 1 then sum = weight end -- and no rounding error lives for ever
redis.call('HSET', KEYS[3], ' sum', sum)
redis.call('EXPIRE', KEYS[2], 120)
redis.call('EXPIRE', KEYS[3], 120)
local parts = math.max(sum / weight, 1)

local wait = 0
for i = 1, closed do
    local till = tonumber(redis.call('GET', KEYS[3 + i]) or '0')
    if till > now then wait = math.max(wait, till - now) end
end
if wait > 0 then return { string.format('%.6f', wait) } end

local crowded, full, taken = false, {}, { '0' }
for i = 1, #KEYS - 3 - closed do
    local at = 3 + (i - 1) * 4
    local each, burst = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local cost, share = tonumber(ARGV[at + 3]) * each, ARGV[at + 4] == '1'
    if share then cost = cost * parts end
    local most = math.max(burst * each, cost)
    local stored = redis.call('GET', KEYS[3 + closed + i])
    local used = 0
    if stored then
        used = math.max(tonumber(stored) - now, 0)
    elseif young and not share then
        used = math.max(burst * each - each, 0)
    end
    if not share then crowded = used > burst * each / 2 end
    local ahead = used + cost - most
    if ahead > 0 and (not share or crowded) then wait = math.max(wait, ahead) end
    full[i] = used + cost
    taken[2 * i] = string.format('%.6f', cost)
    taken[2 * i + 1] = string.format('%.6f', full[i])
end
if wait > 0 then return { string.format('%.6f', wait) } end
for i, left in ipairs(full) do
    redis.call('SET', KEYS[3 + closed + i], string.format('%.6f', now + left), 'PX', math.ceil(left * 1000) + 1000)
end
return taken
