-- KEYS inc, held, lease; ARGV[3…] runs. Gives back what they hold, once; returns how many were held.
local runs = {}
for at = 3, #ARGV do runs[#runs + 1] = ARGV[at] end
if #runs == 0 then return 0 end
redis.call('ZREM', KEYS[3], unpack(runs))
return redis.call('HDEL', KEYS[2], unpack(runs))
