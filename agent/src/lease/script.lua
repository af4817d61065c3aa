-- Renews what one agent holds of one limit, and says what it holds from now on. Runs in the store, as one step: see
-- ARCHITECTURE.md#limits-of-the-whole-cluster. agent/src/lease/ledger.rs has the same arithmetic in Rust, and tests compare.
--
-- KEYS[1]  a hash: 'pot' and 'at' (what nobody holds, and when that was), and for each agent, by its id,
--          'held used demand until called'
-- ARGV     id, requests a second, burst, used so far, demand a second, state (new, known, away), pace (busy, idle);
--          and, in tests only, the time
local key = KEYS[1]
local id = ARGV[1]
local rate, burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local used, demand = tonumber(ARGV[4]), tonumber(ARGV[5])
local state, pace = ARGV[6], ARGV[7]
local now = tonumber(ARGV[8])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local pot, at
local count, others_held, all_demand = 1, 0, demand
local own_held, own_used, own_called
local gone = {}
local fields = redis.call('HGETALL', key)
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if name == 'pot' then
    pot = tonumber(value)
  elseif name == 'at' then
    at = tonumber(value)
  else
    local held, was_used, was_demand, till, called = string.match(value, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
    held, was_used, was_demand = tonumber(held), tonumber(was_used), tonumber(was_demand)
    till, called = tonumber(till), tonumber(called)
    if name == id then
      own_held, own_used, own_called = held, was_used, called
    elseif not till or till < now then
      gone[#gone + 1] = name
    else
      count = count + 1
      others_held = others_held + held
      all_demand = all_demand + was_demand
    end
  end
end

local period = math.min(1, math.max(0.1, count / 100))
local most = math.max(1, burst, 2 * rate * period)
if not pot or not at then
  pot = state == 'new' and most or 0
else
  pot = pot + rate * math.max(0, now - at)
end
local left, since = 0, period
if state == 'known' and own_held then
  left = own_held - (used - own_used)
  since = math.min(2 * period, math.max(0, now - own_called))
elseif state == 'away' then
  pot = math.min(pot, rate * period)
end
if left < 0 then
  -- It has used more than it held, while it waited for the answer.
  pot, left = pot + left, 0
end
pot = math.max(-most, math.min(pot, math.max(0, most - others_held - left)))

local base = rate / 10 / count
local share = (demand + base) / (all_demand + rate / 10)
local spread = count == 1 and 1 or 1 / (2 * (count - 1))
local want = math.max(1, 2 * demand * period, most * spread)
local held
if all_demand > rate then
  -- Everybody's share of what is regained, so that the pot stays at what is regained in a period.
  local more = share * (rate * since + (pot - rate * period) / 2)
  -- Who is asked for less than before does not keep what others need.
  want = math.max(1, 2 * share * math.max(rate * period, pot))
  held = math.min(want, left + math.max(0, math.min(more, pot)))
else
  held = math.min(want, math.max(0, pot + left) * share)
  if held < 1 and pot + left + others_held >= 1 then
    -- Nobody is turned away while others hold what they are not asked for.
    held = 1
  end
end
pot = pot + left - held

local part = 1 / count
if all_demand > 0 then
  part = (demand / all_demand + part) / 2
end
local lifetime = pace == 'idle' and 3.5 or math.max(2, 5 * period)

local function text(number)
  return string.format('%.17g', number)
end
if #gone > 0 then
  -- Not more arguments at once than Lua takes.
  for first = 1, #gone, 1000 do
    redis.call('HDEL', key, unpack(gone, first, math.min(#gone, first + 999)))
  end
end
redis.call('HSET', key, 'pot', text(pot), 'at', text(now), id,
  text(held) .. ' ' .. text(used) .. ' ' .. text(demand) .. ' ' .. text(now + lifetime) .. ' ' .. text(now))
-- By then it is as if it had never been there.
redis.call('PEXPIRE', key, math.floor(math.min(2592000, 60 + (most - pot) / rate) * 1000))
return { text(held), text(rate * share), text(part), text(period), tostring(count), want > held and 'short' or 'enough' }
