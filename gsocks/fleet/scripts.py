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

#: Add to a count.  KEYS: the count.  ARGV: how much, when it expires in seconds since the epoch.
#: The sum.
ADD = """
local sum = redis.call('INCRBY', KEYS[1], ARGV[1])
redis.call('EXPIREAT', KEYS[1], ARGV[2])
return sum
"""
