-- Put between the prelude and the scripts that move runs. KEYS[2…17] are the keys below, in this order, in each of them.
-- ARGV[3] = default caps, e.g. `T10NS1K`: a letter without a number has none.
--
-- A run that is not held is in one of `rq`, `wait`, `delay`. What must hold after every script, for then nothing waits for nothing:
--   1. a tenant with a run in `rq` is in `act` (per queue and class), or in `out`: its cap is full, a release brings it back;
--   2. where a resource has room and runs of a tenant, queue and class wait for it, one that needs it is in `rq`.
local RQ, ACT, PASS, ST, IDLE, CAP, USED, HELD, LEASE, WAIT, DELAY, EWMA, PARKED, URGENT, OUT, WAITING = unpack(KEYS, 2, 17)

-- A ready member: `qp|tenant|due13|run|N…,S…,K…` with q = queue (hex digit), p = priority; `qp` is its group.
local function group_of(member) return string.sub(member, 1, 2) end
local function tenant_of(member) return string.sub(member, 4, 35) end
local function due_of(member) return tonumber(string.sub(member, 37, 49)) end
local function run_of(member) return string.sub(member, 51, 82) end
local function sync_of(member) return string.sub(member, 119, 150) end
local resources_by_member = {}
local function resources_of(member)
    local ids = resources_by_member[member]
    if not ids then
        ids = {'T' .. string.sub(member, 4, 35), string.sub(member, 84, 116), string.sub(member, 118, 150), string.sub(member, 152, 184)}
        resources_by_member[member] = ids
    end
    return ids
end
-- `a` is to go before `b`: first due, then by id.
local function is_older(a, b)
    if due_of(a) ~= due_of(b) then return due_of(a) < due_of(b) end
    return run_of(a) < run_of(b)
end

-- Resources: cap, holds now, runs that wait for it. Read once, written once, by `finish`.
local default_caps, resources = {}, {}
for kind, cap in string.gmatch(ARGV[3], '(%u)(%d*)') do default_caps[kind] = tonumber(cap) end
local has_caps, has_waiting = redis.call('EXISTS', CAP) == 1, redis.call('EXISTS', WAITING) == 1
-- What circuit breakers allow, by credential: `B` + id beside the operator's `K` + id, and the lower one holds.
local function read_breakers(ids)
    local names, credentials, found = {}, {}, {}
    for _, id in ipairs(ids) do
        if string.sub(id, 1, 1) == 'K' then
            credentials[#credentials + 1] = id
            names[#names + 1] = 'B' .. string.sub(id, 2)
        end
    end
    if #names == 0 then return found end
    for at, cap in ipairs(redis.call('HMGET', CAP, unpack(names))) do
        if cap then found[credentials[at]] = tonumber(string.match(cap, '^%d+')) end
    end
    return found
end
local function load_resources(ids)
    local new, none = {}, {}
    for _, id in ipairs(ids) do
        if not resources[id] then
            resources[id] = {id = id, weight = 1, waiting = 0}
            new[#new + 1] = id
        end
    end
    if #new == 0 then return end
    local used = redis.call('HMGET', USED, unpack(new))
    local caps = has_caps and redis.call('HMGET', CAP, unpack(new)) or none
    local breakers = has_caps and read_breakers(new) or none
    local waiting = has_waiting and redis.call('HMGET', WAITING, unpack(new)) or none
    for at, id in ipairs(new) do
        local resource = resources[id]
        resource.used = tonumber(used[at] or 0)
        resource.cap = default_caps[string.sub(id, 1, 1)]
        if caps[at] then
            local cap, weight = string.match(caps[at], '^(%d+)|(%d+)|')
            resource.cap, resource.weight = tonumber(cap), tonumber(weight)
        end
        if breakers[id] then resource.cap = math.min(resource.cap or breakers[id], breakers[id]) end
        if waiting[at] then resource.waiting = tonumber(waiting[at]) end
    end
end
local dirty, dirty_waiting = {}, {}
local function use(ids, number)
    for _, id in ipairs(ids) do
        local resource = resources[id]
        resource.used, dirty[id] = resource.used + number, resource
    end
end
local function add_waiting(id, number)
    local resource = resources[id]
    resource.waiting, dirty_waiting[id] = resource.waiting + number, resource
end

-- Of each tenant the oldest run that waited for longer than the patience keeps a slot free on each of its resources.
local urgents = {}
local has_urgents = redis.call('EXISTS', URGENT) == 1
local function urgent_of(tenant)
    if urgents[tenant] == nil then
        local member = has_urgents and redis.call('HGET', URGENT, tenant)
        urgents[tenant] = member and {member = member, needs = {}} or false
        if member then
            for _, id in ipairs(resources_of(member)) do urgents[tenant].needs[id] = true end
        end
    end
    return urgents[tenant]
end
local function set_urgent(tenant, member)
    if member then redis.call('HSET', URGENT, tenant, member) else redis.call('HDEL', URGENT, tenant) end
    urgents[tenant] = nil
    has_urgents = has_urgents or member ~= nil
end
-- Room on a resource for `member`; nil: for any but the urgent one.
local function has_room(id, tenant, member)
    local resource = resources[id]
    if not resource.cap then return true end
    local urgent = urgent_of(tenant)
    local kept = urgent and urgent.member ~= member and urgent.needs[id] and 1 or 0
    return resource.used + kept < resource.cap
end

-- Tenants per group: `pass` says how much each was served (slot milliseconds over weight), `act` orders those that have something.
local states, passes, woken, is_started = {}, {}, {}, {}
local has_outs = redis.call('EXISTS', OUT) == 1
do
    local found = redis.call('HGETALL', ST)
    for at = 1, #found, 2 do states[found[at]] = found[at + 1] end
end
local function served_of(group) return tonumber(states['v' .. group]) or 0 end  -- the group's virtual time
local function place(key, value) return string.sub(key, 1, 3) .. string.format('%020.3f', value) .. string.sub(key, 3) end
local function load_passes(keys)
    local new = {}
    for _, key in ipairs(keys) do
        if not passes[key] then
            passes[key] = {value = served_of(string.sub(key, 1, 2)), is_active = false}
            new[#new + 1] = key
        end
    end
    if #new == 0 then return end
    local found = redis.call('HMGET', PASS, unpack(new))
    for at, key in ipairs(new) do
        if found[at] then
            local pass = passes[key]
            pass.value, pass.is_active, pass.is_stored = tonumber(string.sub(found[at], 2)), string.sub(found[at], 1, 1) == 'a', true
            if pass.is_active then pass.place = place(key, pass.value) end
        end
    end
end
-- Who comes, or comes back, starts where the others are: being away earns no credit.
local function activate(keys)
    load_passes(keys)
    for _, key in ipairs(keys) do
        local pass, group = passes[key], string.sub(key, 1, 2)
        if not pass.is_active then
            local outs = has_outs and redis.call('HGET', OUT, string.sub(key, 4)) or ''
            if not string.find(outs, group .. ',', 1, true) then
                pass.value = math.max(pass.value, served_of(group))
                pass.is_active, pass.is_dirty, is_started[group] = true, true, true
                local queue = string.sub(group, 1, 1)
                woken[queue] = (woken[queue] or 0) + 1
            end
        end
    end
end
local function key_of(member) return string.sub(member, 1, 35) end
local function deactivate(key)
    passes[key].is_active, passes[key].is_dirty = false, true
end
-- The tenant's cap is full: it stays away until one of its slots is free.
local function put_out(key)
    local tenant = string.sub(key, 4)
    local outs = redis.call('HGET', OUT, tenant) or ''
    redis.call('HSET', OUT, tenant, outs .. string.sub(key, 1, 2) .. ',')
    has_outs = true
    deactivate(key)
end
local function bring_back(tenant)
    local outs = has_outs and redis.call('HGET', OUT, tenant)
    if not outs then return end
    redis.call('HDEL', OUT, tenant)
    for group in string.gmatch(outs, '(%x%d),') do activate({group .. '|' .. tenant}) end
end

-- Parked runs: `parked` says of a run since when it has been refused, and on which kind of resource it waits (`-`: on none, it is in rq).
local has_parked = redis.call('EXISTS', PARKED) == 1
local leaving, waiting, parkings = {}, {}, {}
local function refused_since(member)
    local found = has_parked and redis.call('HGET', PARKED, run_of(member))
    return found and tonumber(string.sub(found, 2))
end
local function note_refusal(member, where)
    parkings[#parkings + 1] = run_of(member)
    parkings[#parkings + 1] = where .. whole(refused_since(member) or now)
end
local function park(member, id)
    note_refusal(member, string.sub(id, 1, 1))
    leaving[#leaving + 1] = member
    waiting[#waiting + 1] = '0'
    waiting[#waiting + 1] = id .. '|' .. member
    add_waiting(id, 1)
end
local function write_moves()
    write('ZREM', RQ, leaving)
    write('ZADD', WAIT, waiting)
    write('HSET', PARKED, parkings)
    has_parked = has_parked or #parkings > 0
    leaving, waiting, parkings = {}, {}, {}
end
local function unpark(id, member)
    redis.call('ZREM', WAIT, id .. '|' .. member)
    redis.call('HSET', PARKED, run_of(member), '-' .. whole(refused_since(member) or now))
    redis.call('ZADD', RQ, 0, member)
    add_waiting(id, -1)
    activate({key_of(member)})
end
-- A resource may have room: the oldest waiter of each group goes back to its place, where it is examined again; with `only`, of that
-- group. Returns whether one did.
local function readmit(id, tenant, only)
    local resource = resources[id]
    if resource.waiting == 0 or (resource.cap and resource.used >= resource.cap) then return false end
    write_moves()
    if not has_room(id, tenant) then
        local urgent = urgent_of(tenant).member  -- the last slot is kept for it
        if not redis.call('ZSCORE', WAIT, id .. '|' .. urgent) then return false end
        unpark(id, urgent)
        return true
    end
    local from, to, is_any = '[' .. id .. '|' .. (only or ''), '[' .. id .. '|' .. (only or '') .. '}', false
    while true do
        local member = string.sub(redis.call('ZRANGEBYLEX', WAIT, from, to, 'LIMIT', 0, 1)[1] or '', 35)
        if member == '' then return is_any end
        unpark(id, member)
        from, is_any = '[' .. id .. '|' .. group_of(member) .. '}', true
    end
end
local function readmit_all(ids, tenant, only)
    for at = 2, 4 do readmit(ids[at], tenant, only) end
end
-- What was kept for the tenant's urgent run is free for the others.
local function drop_urgent(tenant)
    local urgent = urgent_of(tenant)
    if not urgent then return end
    local ids = resources_of(urgent.member)
    load_resources(ids)
    set_urgent(tenant, nil)
    bring_back(tenant)
    readmit_all(ids, tenant)
end
-- Out of rq, wait and delay, because it is held now or delayed; others of its group may be examined in its stead.
local function withdraw(members)
    if #members == 0 then return end
    local runs, ids_by_member, waits = {}, {}, {}
    for _, member in ipairs(members) do
        runs[#runs + 1] = run_of(member)
        ids_by_member[member] = resources_of(member)
        load_resources(ids_by_member[member])
    end
    local parked = redis.call('HMGET', PARKED, unpack(runs))
    for at, member in ipairs(members) do
        local where = string.find('NSK', string.sub(parked[at] or '-', 1, 1), 1, true)
        if where then
            local id = ids_by_member[member][where + 1]
            waits[#waits + 1] = id .. '|' .. member
            add_waiting(id, -1)
        end
    end
    write('ZREM', RQ, members)
    write('ZREM', WAIT, waits)
    write('ZREM', DELAY, members)
    write('HDEL', PARKED, runs)
    for _, member in ipairs(members) do
        local tenant = tenant_of(member)
        local urgent = urgent_of(tenant)
        if urgent and urgent.member == member then drop_urgent(tenant) end
        readmit_all(ids_by_member[member], tenant, group_of(member))
    end
end
-- Ready members into rq.
local function enqueue(members)
    local scored, keys, is_known = {}, {}, {}
    for _, member in ipairs(members) do
        scored[#scored + 1] = '0'
        scored[#scored + 1] = member
        if not is_known[key_of(member)] then
            is_known[key_of(member)] = true
            keys[#keys + 1] = key_of(member)
        end
        local queue = string.sub(member, 1, 1)
        woken[queue] = (woken[queue] or 0) + 1
    end
    if #members == 0 then return end
    write('ZADD', RQ, scored)
    activate(keys)
end

-- Ends holds; `mode` ended: they say how long the sync takes; refused: they were never used; expired: nobody renewed them.
local function clamp(seconds) return math.min(math.max(seconds, 1), 600) end
local function read_holds(runs)
    local found, holds, ids, keys, is_seen = redis.call('HMGET', HELD, unpack(runs)), {}, {}, {}, {}
    for at, run in ipairs(runs) do
        if found[at] and not is_seen[run] then
            is_seen[run] = true
            local member = string.sub(found[at], 1, 184)
            local cost, since = string.match(found[at], '^(%d+)|(%d+)$', 186)
            holds[#holds + 1] = {run = run, member = member, cost = tonumber(cost), held_ms = math.max(now - since, 0)}
            keys[#keys + 1] = key_of(member)
            for _, id in ipairs(resources_of(member)) do ids[#ids + 1] = id end
        end
    end
    load_resources(ids)
    load_passes(keys)
    return holds
end
-- The seconds that each sync holds a slot, as a moving average; one second or less is not stored.
local function learn(holds)
    local syncs, expected, set, gone = {}, {}, {}, {}
    for at, hold in ipairs(holds) do syncs[at] = sync_of(hold.member) end
    for at, known in ipairs(#syncs > 0 and redis.call('HMGET', EWMA, unpack(syncs)) or {}) do expected[syncs[at]] = tonumber(known or '') end
    for at, hold in ipairs(holds) do
        local known, seconds = expected[syncs[at]], clamp(hold.held_ms / 1000)
        expected[syncs[at]] = known and known + (seconds - known) / 4 or seconds
    end
    for sync, seconds in pairs(expected) do
        if seconds <= 1.001 then
            gone[#gone + 1] = sync
        else
            set[#set + 1] = sync
            set[#set + 1] = string.format('%.3f', seconds)
        end
    end
    write('HSET', EWMA, set)
    write('HDEL', EWMA, gone)
end
local function release(runs, mode)
    local holds, ended, members = read_holds(runs), {}, {}
    for at, hold in ipairs(holds) do
        use(resources_of(hold.member), -1)
        local pass, tenant = passes[key_of(hold.member)], resources['T' .. tenant_of(hold.member)]
        local served_ms = mode == 'refused' and 0 or hold.held_ms
        pass.value, pass.is_dirty = math.max(0, pass.value + (served_ms - hold.cost) / tenant.weight), true
        ended[at], members[at] = hold.run, hold.member
    end
    if mode == 'ended' then learn(holds) end
    write('HDEL', HELD, ended)
    write('ZREM', LEASE, runs)
    return members
end
local function readmit_after(members)
    for _, member in ipairs(members) do
        bring_back(tenant_of(member))
        readmit_all(resources_of(member), tenant_of(member))
    end
end

-- At the end of each script.
local function write_counts(key, changed, name)
    local set, gone = {}, {}
    for id, resource in pairs(changed) do
        if resource[name] > 0 then
            set[#set + 1] = id
            set[#set + 1] = resource[name]
        else
            gone[#gone + 1] = id
        end
    end
    write('HSET', key, set)
    write('HDEL', key, gone)
end
local function write_passes()
    local set, gone, places, old_places = {}, {}, {}, {}
    for key, pass in pairs(passes) do
        if pass.is_dirty then
            local tenant = resources['T' .. string.sub(key, 4)]
            local is_kept = pass.is_active or pass.value > served_of(string.sub(key, 1, 2)) or not tenant or tenant.used > 0
            local new_place = pass.is_active and place(key, pass.value) or nil
            if pass.place and pass.place ~= new_place then old_places[#old_places + 1] = pass.place end
            if new_place and pass.place ~= new_place then
                places[#places + 1] = '0'
                places[#places + 1] = new_place
            end
            if is_kept then
                set[#set + 1] = key
                set[#set + 1] = (pass.is_active and 'a' or 'o') .. string.format('%.3f', pass.value)
            elseif pass.is_stored then
                gone[#gone + 1] = key
            end
        end
    end
    write('ZREM', ACT, old_places)
    write('ZADD', ACT, places)
    write('HSET', PASS, set)
    write('HDEL', PASS, gone)
end
local function wake_workers()
    for queue, number in pairs(woken) do
        local workers = redis.call('ZRANGEBYLEX', IDLE, '[' .. queue .. '|', '[' .. queue .. '}', 'LIMIT', 0, math.ceil(number / 8))
        write('ZREM', IDLE, workers)
        for _, worker in ipairs(workers) do redis.call('PUBLISH', 'ws2:w:' .. string.sub(worker, 3), 'ready') end
    end
end
local function finish(result)
    write_moves()
    write_counts(USED, dirty, 'used')
    write_counts(WAITING, dirty_waiting, 'waiting')
    write_passes()
    wake_workers()
    return result
end
