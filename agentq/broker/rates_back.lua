-- Give back what a call took and did not use. See agentq/store/sql/functions/rates.sql.
-- KEYS: buckets. ARGV: seconds for each.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
for i, key in ipairs(KEYS) do
    local stored = redis.call('GET', key)
    if stored then
        local left = tonumber(stored) - now - tonumber(ARGV[i])
        if left > 0 then
            redis.call('SET', key, string.format('%.6f', now + left), 'PX', math.ceil(left * 1000) + 1000)
        else
            redis.call('DEL', key)
        end
    end
end
