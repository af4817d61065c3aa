-- Renews what one agent holds of one limit, and says what it holds from now on. Runs in the store, as one step: see
-- ARCHITECTURE.md#limits-of-the-whole-cluster. agent/src/lease/ledger.rs has the same arithmetic in Rust, and tests compare.
--
-- KEYS[1]  a hash: 'pot' and 'at' (what nobody holds, and when that was), and for each agent, by its id,
--          'held used demand until called credit'
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
local own_held, own_used, own_called, credit
local gone = {}
local fields = redis.call('HGETALL', key)
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if name == 'pot' then
    pot = tonumber(value)
  elseif name == 'at' then
    at = tonumber(value)
  else
    local held, was_used, was_demand, till, called, was_credit =
      string.match(value, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
    held, was_used, was_demand = tonumber(held), tonumber(was_used), tonumber(was_demand)
    till, called = tonumber(till), tonumber(called)
    if name == id then
      own_held, own_used, own_called, credit = held, was_used, called, tonumber(was_credit)
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
-- What agents hold has partly been used since they called, so what is regained meanwhile is not too much.
pot = math.max(-most - count, math.min(pot, most + 2 * rate * period - others_held - left))

local held, want
if all_demand > rate then
  -- Everybody's share of what is regained, in whole requests: of a part of one nobody can make use, and if each kept a part
  -- there might be no whole one left. What of a share is no whole request is its credit.
  local share = demand / all_demand
  local usual = math.max(1, rate * period)
  credit = (credit or 0) + share * (rate * since + math.max(0, pot - usual) / 2)
  if demand > 0 then
    want = math.ceil(1 + 2 * share * math.max(usual, pot))
  else
    -- Who is asked for nothing does not keep the only request there is.
    want = most >= 2 * count and 1 or 0
  end
  held = math.min(want, math.floor(left))
  local more = 0
  if credit > 0 then
    more = math.max(0, math.min(math.ceil(credit), math.floor(pot + left - held), want - held))
  end
  held = held + more
  credit = math.min(credit - more, want)
else
  local share = (demand + rate / 10 / count) / (all_demand + rate / 10)
  local spread = count == 1 and 1 or 1 / (2 * (count - 1))
  want = math.max(1, 2 * demand * period, most * spread)
  local there = math.max(0, pot + left)
  held = math.min(math.ceil(math.min(want, there * share)), math.floor(there))
  if held < 1 and pot + left + others_held >= 1 then
    -- Nobody is turned away while others hold what they are not asked for.
    held = 1
  end
  credit = 0
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
  text(held) .. ' ' .. text(used) .. ' ' .. text(demand) .. ' ' .. text(now + lifetime) .. ' ' .. text(now) .. ' ' ..
  text(credit))
-- By then it is as if it had never been there.
redis.call('PEXPIRE', key, math.floor(math.min(2592000, 60 + (most - pot) / rate) * 1000))
return { text(held), text(rate * (demand + rate / 10 / count) / (all_demand + rate / 10)), text(part), text(period), tostring(count), want > held and 'short' or 'enough' }
