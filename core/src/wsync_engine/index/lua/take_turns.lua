-- Places for calls on one credential, by the generic cell rate algorithm: the next call is due `apart` after the one before, whoever makes it.
-- KEYS[1] = hash: `next` (when the next free place is), `held` (until when the destination wants to be left alone), both in µs since 1970.
-- ARGV: test clock in ms or '' · places wanted · µs between two (0: no rate) · how far ahead a place may lie, µs · hold asked for, µs.
-- Returns {places, µs until the first, µs until it is worth asking again if there are none, µs that the hold lasts}. A place that nobody uses is lost.
local now = tonumber(ARGV[1])
if now then
    now = now * 1000
else
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end
local wanted, apart, ahead, hold = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local stored = redis.call('HMGET', KEYS[1], 'next', 'held')
local next_at, held = math.max(now, tonumber(stored[1]) or 0), math.max(now, tonumber(stored[2]) or 0)
local function whole(number) return string.format('%.0f', number) end
local function keep(name, at)
    redis.call('HSET', KEYS[1], name, whole(at))
    local life = math.ceil((at - now) / 1000) + 1000
    if redis.call('PTTL', KEYS[1]) < life then redis.call('PEXPIRE', KEYS[1], whole(life)) end
end
if now + hold > held then
    held = now + hold
    keep('held', held)
end
local first, places, again = math.max(next_at, held), 0, 0
if wanted > 0 and apart > 0 then
    if first <= now + ahead then
        places = math.min(wanted, math.floor((now + ahead - first) / apart) + 1)
        keep('next', first + places * apart)
    else
        again = first - now - ahead
    end
end
return {whole(places), whole(first - now), whole(again), whole(held - now)}
