"""What has to be atomic in the store, in Lua (Redis 7, Valkey 8).

Each script names all of its keys, of which it has one, so that it runs in a cluster too.
"""

from __future__ import annotations

#: Write a record, unless the store has a newer one.
#: KEYS: the record.  ARGV: stamp and value in one text, milliseconds until it expires.
#: 1: it was written, 0: it was not.
WRITE = """
local old = redis.call('GET', KEYS[1])
if old and string.sub(old, 1, 24) > string.sub(ARGV[1], 1, 24) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

#: Take a lease, or keep it.  KEYS: the lease.  ARGV: the owner's token, milliseconds.
#: 1: this owner has it, 0: another one has.
LEASE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

#: Give a lease up, if this owner still has it.  KEYS: the lease.  ARGV: the owner's token.
RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

#: Lease a share of a limit.  KEYS: a hash of shares by node, each ``SHARE:EXPIRY``.
#: ARGV: node, how much it wants, how much it uses already, the limit, milliseconds.
#: Its share, which is no less than it uses, and the sum of the others' shares.
SHARE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all, others = redis.call('HGETALL', KEYS[1]), 0
for i = 1, #all, 2 do
  local share, expiry = string.match(all[i + 1], '^(%d+):(%d+)$')
  if not share or tonumber(expiry) <= now then
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] ~= ARGV[1] then
    others = others + tonumber(share)
  end
end
local share = math.min(tonumber(ARGV[2]), tonumber(ARGV[4]) - others)
share = math.max(share, tonumber(ARGV[3]))
if share > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d:%d', share, now + ARGV[5]))
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return {share, others}
"""

#: Lease a part of a limit that several want, by max-min fairness: who wants less than an even
#: division has it, and the others divide the rest evenly, rounded up.
#: KEYS: a hash by node, each ``SHARE:WANTED:EXPIRY``.
#: ARGV: node, how much it wants, how much it uses already, the limit, milliseconds.
#: Its share, which is no less than it uses; its part, which it may use from now on, and which is
#: less if it has to give something up; the sum of the others' shares; what the others want.
PART = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local wanted, used, limit = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local all, others, sum, wants = redis.call('HGETALL', KEYS[1]), 0, 0, {wanted}
local last = now + ARGV[5]
for i = 1, #all, 2 do
  local share, want, expiry = string.match(all[i + 1], '^(%d+):(%d+):(%d+)$')
  if not share or tonumber(expiry) <= now then
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] ~= ARGV[1] then
    others, sum = others + tonumber(share), sum + tonumber(want)
    wants[#wants + 1] = tonumber(want)
    last = math.max(last, tonumber(expiry))
  end
end
table.sort(wants)
local left, parts, fair = limit, #wants, wanted
for _, want in ipairs(wants) do
  if want * parts > left then
    fair = math.ceil(left / parts)
    break
  end
  left, parts = left - want, parts - 1
end
local part = math.max(0, math.min(wanted, fair, limit - others))
local share = math.max(part, used)
if share > 0 or wanted > 0 then
  local text = string.format('%.0f:%.0f:%.0f', share, wanted, now + ARGV[5])
  redis.call('HSET', KEYS[1], ARGV[1], text)
  redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last))
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return {share, part, others, sum}
"""

#: Add to a count, once for each number of a node: what was sent again, since it was not known
#: whether it had arrived, counts once.  Of nodes that are gone a number is left; of very many all
#: are forgotten.
#: KEYS: a hash: ``sum``, and by node the number that was added last.
#: ARGV: node, number, how much, a sum that is known and is restored if the store has lost it, when
#: it expires in seconds since the epoch.  The sum.
ADD = """
local sum = math.max(tonumber(redis.call('HGET', KEYS[1], 'sum') or 0), tonumber(ARGV[4]))
local last = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0)
if tonumber(ARGV[2]) > last then
  sum = sum + tonumber(ARGV[3])
  if redis.call('HLEN', KEYS[1]) > 1000 then redis.call('DEL', KEYS[1]) end
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('HSET', KEYS[1], 'sum', string.format('%.0f', sum))
redis.call('EXPIREAT', KEYS[1], ARGV[5])
return sum
"""
