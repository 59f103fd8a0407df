-- One commit: all guards, then all checks, then all writes, then the reads. Nothing can fail after the first write.
-- KEYS: all keys the program names. ARGV: the prefix of all keys, then the program as `script.rs` lays it out.
-- Values are opaque bytes. Numbers in Lua are doubles: the only ones computed here are u32, sums far below 2^53, and estimates that decide
-- whether an addition stays far from the limits of an i64.
local K, A, p = KEYS, ARGV, 1
local call, try = redis.call, redis.pcall
local S, T = {}, {} -- strings as they will be once the writes before are done (false: absent); types likewise
local changed = {} -- hashes that a write before changes, whatever they are
local bad

local function nxt()
  p = p + 1
  return A[p]
end

local function num()
  p = p + 1
  return tonumber(A[p])
end

local function key()
  p = p + 1
  return K[tonumber(A[p])]
end

local function list()
  local out = {}
  for i = 1, num() do
    out[i] = nxt()
  end
  return out
end

-- The inode of an entry as decimal text; those of the trash are above 2^53.
local function inode(entry)
  local a, b, c, d, e, f, g, h = string.byte(entry, 2, 9)
  local high = ((a * 256 + b) * 256 + c) * 256 + d
  if high < 2097152 then
    return string.format('%.0f', high * 4294967296 + ((e * 256 + f) * 256 + g) * 256 + h)
  end
  local limbs, text = {a * 256 + b, c * 256 + d, e * 256 + f, g * 256 + h}, ''
  repeat
    local rest, more = 0, false
    for i = 1, 4 do
      local x = rest * 65536 + limbs[i]
      limbs[i] = math.floor(x / 1000000)
      rest = x - limbs[i] * 1000000
      more = more or limbs[i] > 0
    end
    text = string.format(more and '%06.0f' or '%.0f', rest) .. text
  until not more
  return text
end

local function str(k)
  local v = S[k]
  if v == nil then
    v = call('GET', k)
    S[k] = v
    T[k] = v and 'string' or 'none'
  end
  return v
end

-- Every run of this text makes its functions and tables anew. So there are few of them, and the kinds are told apart by comparisons, the
-- frequent ones first.
local function query(kind)
  if kind == 'G' then
    return str(key())
  elseif kind == 'F' then
    return call('HGET', key(), nxt())
  elseif kind == 'L' then
    return call('LRANGE', key(), 0, -1)
  elseif kind == 'E' then
    local entry = call('HGET', key(), nxt())
    if not entry then
      return false
    end
    local record = false
    if #entry == 9 then
      record = try('GET', A[1] .. 'i' .. inode(entry))
    end
    return {entry, type(record) == 'string' and record}
  elseif kind == 'C' then
    -- The newest records of a list that name small slices, and their frames, up to so many bytes and to a slice that is known already.
    local records, frames, room, small, known, out = call('LRANGE', key(), -num(), -1), key(), num(), num(), nxt(), {}
    local none = '\0\0\0\0\0\0\0\0'
    for i = #records, 1, -1 do
      local r = records[i]
      local a, b, c, d = string.byte(r, 13, 16)
      local id = string.sub(r, 5, 12)
      if id == known and known ~= none then
        break
      end
      if #r == 24 and id ~= none and ((a * 256 + b) * 256 + c) * 256 + d <= small then
        local frame = try('HGET', frames, id)
        frame = type(frame) == 'string' and frame
        room = room - (frame and #frame or 0)
        if room < 0 then
          break
        end
        out[#out + 1] = id
        out[#out + 1] = frame
      end
    end
    return out
  elseif kind == 'A' then
    return call('HGETALL', key())
  elseif kind == 'N' then
    return call('HLEN', key())
  elseif kind == 'M' then
    return call('SMEMBERS', key())
  elseif kind == 'Z' then
    return call('ZSCORE', key(), nxt())
  elseif kind == 'R' then
    return call('ZRANGEBYSCORE', key(), '-inf', nxt(), 'WITHSCORES', 'LIMIT', 0, nxt())
  elseif kind == 'K' then
    return {call('HLEN', key()), try('GET', key()), try('ZRANGE', key(), 0, 0, 'WITHSCORES')}
  end
end

-- Type of what a query reads, and how many arguments it has beside the key.
local function read_of(kind)
  if kind == 'G' then
    return 'string', 0
  elseif kind == 'L' then
    return 'list', 0
  elseif kind == 'C' then
    return 'list', 4
  elseif kind == 'M' then
    return 'set', 0
  elseif kind == 'Z' then
    return 'zset', 1
  elseif kind == 'R' then
    return 'zset', 2
  elseif kind == 'K' then
    return 'hash', 2
  end
  return 'hash', (kind == 'F' or kind == 'E') and 1 or 0
end

-- Whether a guard holds, and the value it looked at.
local function guard(kind)
  if kind == 'V' then
    local v = str(key())
    if num() == 0 then
      return not v, v
    end
    return v == nxt(), v
  elseif kind == 'B' then
    local v = str(key())
    local holds = v ~= false
    for _ = 1, num() do
      local from, to, want = num(), num(), nxt()
      holds = holds and string.sub(v, from, to) == want
    end
    return holds, v
  elseif kind == 'F' then
    local k = key()
    local v = call('HGET', k, nxt())
    T[k] = 'hash'
    if num() == 0 then
      return not v, v
    end
    return v == nxt(), v
  elseif kind == 'H' then
    local k = key()
    local v = call('HGETALL', k)
    T[k] = 'hash'
    local found, count = {}, num()
    for i = 1, #v, 2 do
      found[v[i]] = v[i + 1]
    end
    local holds = #v == 2 * count
    for _ = 1, count do
      local field = nxt()
      holds = found[field] == nxt() and holds
    end
    return holds, v
  elseif kind == 'p' or kind == 'l' then
    local k = key()
    local v, want = call('LRANGE', k, 0, -1), num()
    T[k] = 'list'
    local holds = kind == 'p' and #v >= want or #v == want
    for i = 1, want do
      holds = holds and v[i] == A[p + i]
    end
    p = p + want
    return holds, v
  elseif kind == 's' then
    local v = call('ZSCORE', key(), nxt())
    if num() == 0 then
      return not v, v
    end
    local want = tonumber(nxt())
    return v ~= false and tonumber(v) == want, v
  end
  local v = call('HLEN', key())
  if kind == 'c' then
    return v == num(), v
  end
  return (v == 0) == (kind == 'e'), v
end

local function typed(k, t)
  local is = T[k]
  if is == nil then
    is = call('TYPE', k).ok
  end
  if is ~= t and is ~= 'none' then
    bad = bad or ('a ' .. is .. ' where a ' .. t .. ' belongs: ' .. k)
  end
  T[k] = t
end

-- Whether INCRBY or HINCRBY of this text succeeds.
local function addable(v, delta)
  if not v then
    return true
  end
  if #v > 20 or not (v == '0' or string.find(v, '^%-?[1-9]%d*$')) then
    return false
  end
  return math.abs(tonumber(v) + tonumber(delta)) < 9.2e18
end

-- A counter in a hash: its value or false. One that is none, or no hash, is bad.
local function counter(k, field)
  local v = try('HGET', k, field)
  if type(v) == 'table' then
    bad = bad or ('no hash of counters: ' .. k)
    return false
  end
  T[k] = 'hash'
  return v
end

-- Checks one write and answers the command that does it.
local function write(kind)
  local k = key()
  if kind == 'hse' then
    typed(k, 'hash')
    return {'HSET', k, nxt(), nxt()}
  elseif kind == 'hin' then
    local field, delta = nxt(), nxt()
    if not addable(counter(k, field), delta) then
      bad = bad or ('no counter, or one at its limit: ' .. k)
    end
    return {'HINCRBY', k, field, delta}
  elseif kind == 'inc' then
    local delta = nxt()
    local v = str(k)
    if not addable(v, delta) then
      bad = bad or ('no counter, or one at its limit: ' .. k)
      return
    end
    S[k], T[k] = string.format('%.0f', tonumber(v or '0') + tonumber(delta)), 'string'
    return {'INCRBY', k, delta}
  elseif kind == 'set' then
    local v = nxt()
    S[k], T[k] = v, 'string'
    return {'SET', k, v}
  elseif kind == 'pat' then
    local offset, bytes = num(), nxt()
    local v = str(k)
    if not v or #v < offset + #bytes then
      bad = bad or ('a value too short to patch: ' .. k)
      return
    end
    S[k] = string.sub(v, 1, offset) .. bytes .. string.sub(v, offset + #bytes + 1)
    return {'SETRANGE', k, offset, bytes}
  elseif kind == 'add' then
    local offset, delta = num(), num()
    local v = str(k)
    if not v or #v < offset + 4 then
      bad = bad or ('a value too short to count in: ' .. k)
      return
    end
    local a, b, c, d = string.byte(v, offset + 1, offset + 4)
    local n = ((a * 256 + b) * 256 + c) * 256 + d + delta
    if n < 0 or n > 4294967295 then
      bad = bad or ('a count out of range: ' .. k)
      return
    end
    local low = n % 65536
    local high = (n - low) / 65536
    local bytes = string.char(math.floor(high / 256), high % 256, math.floor(low / 256), low % 256)
    S[k] = string.sub(v, 1, offset) .. bytes .. string.sub(v, offset + 5)
    return {'SETRANGE', k, offset, bytes}
  elseif kind == 'rpu' or kind == 'rpx' or kind == 'lpu' then
    typed(k, 'list')
    return {kind == 'rpu' and 'RPUSH' or kind == 'rpx' and 'RPUSHX' or 'LPUSH', k, unpack(list())}
  elseif kind == 'del' then
    S[k], T[k] = false, 'none'
    return {'DEL', k}
  elseif kind == 'hde' then
    typed(k, 'hash')
    return {'HDEL', k, nxt()}
  elseif kind == 'fpu' then
    -- Frames: their hash, their ages, the count of their bytes.
    local age, bytes = key(), key()
    typed(k, 'hash')
    typed(age, 'zset')
    if not addable(str(bytes), 0) then
      bad = bad or ('no counter, or one at its limit: ' .. bytes)
    end
    return {'+', k, age, bytes, nxt(), nxt(), nxt()}
  elseif kind == 'fde' then
    local age, bytes = key(), key()
    typed(k, 'hash')
    typed(age, 'zset')
    return {'-', k, age, bytes, nxt()}
  elseif kind == 'hip' then
    changed[k] = true
    return {'?', k, nxt(), nxt()}
  elseif kind == 'sad' or kind == 'sre' then
    typed(k, 'set')
    return {kind == 'sad' and 'SADD' or 'SREM', k, nxt()}
  elseif kind == 'zad' then
    typed(k, 'zset')
    return {'ZADD', k, nxt(), nxt()}
  elseif kind == 'zre' then
    typed(k, 'zset')
    return {'ZREM', k, nxt()}
  elseif kind == 'ltr' then
    typed(k, 'list')
    return {'LTRIM', k, nxt(), -1}
  end
end

-- Stores a frame; answers the bytes of all of them. One that is there already is replaced.
local function put_frame(f, age, bytes, id, frame, ms)
  local before = call('HSTRLEN', f, id)
  call('HSET', f, id, frame)
  call('ZADD', age, ms, id)
  return try('INCRBY', bytes, #frame - before)
end

-- Removes a frame; answers whether it was there. The removal comes before everything else: a server that is out of memory then lets the
-- rest of the commit happen, too. With the last frame the count goes, so that no error in it outlives them.
local function del_frame(f, age, bytes, id)
  local length = call('HSTRLEN', f, id)
  local gone = call('HDEL', f, id)
  if gone == 1 then
    call('ZREM', age, id)
    if call('EXISTS', f) == 0 then
      call('DEL', age, bytes)
    else
      try('INCRBY', bytes, -length)
    end
  end
  return gone
end

-- Whether the answer of a command is told.
local function is_told(name)
  return name == 'HINCRBY' or name == 'INCRBY' or name == 'RPUSH' or name == 'RPUSHX' or name == '+' or name == '-' or name == 'LPUSH'
    or name == 'SREM' or name == 'ZREM'
end

-- The fence: a hash that still holds our token, or none.
local fence, token, slot, record
if nxt() == '1' then
  fence, token, slot, record = key(), nxt(), nxt(), nxt()
  if call('HGET', fence, 'token') ~= token then
    return {2}
  end
end

-- Commands about many names cost a fraction of as many commands. What stands here is about many names: absent strings and hashes, strings with
-- these values, absent fields of one hash, fields with these values. Keys of a run follow each other in KEYS. Answers whether all hold, and what is there.
local function guards(kind)
  local n, holds, found = num(), true
  if kind == 'H-' or kind == 'e-' then
    local first = num()
    local none = call('EXISTS', unpack(K, first, first + n - 1)) == 0
    found = {}
    for i = 1, n do
      local k = K[first + i - 1]
      if none then
        S[k], T[k] = false, 'none'
        found[i] = kind == 'H-' and {} or 0
      elseif kind == 'H-' then
        found[i], T[k] = call('HGETALL', k), 'hash'
        holds = holds and #found[i] == 0
      else
        -- A directory may be large: it is not looked through.
        found[i], T[k] = call('HLEN', k), 'hash'
        holds = holds and found[i] == 0
      end
    end
    return holds, found
  elseif kind == 'V-' or kind == 'V+' then
    local first = num()
    if kind == 'V-' and call('EXISTS', unpack(K, first, first + n - 1)) == 0 then
      found = {}
      for i = 1, n do
        local k = K[first + i - 1]
        found[i], S[k], T[k] = false, false, 'none'
      end
      return true, found
    end
    found = call('MGET', unpack(K, first, first + n - 1))
    for i = 1, n do
      local v, k = found[i], K[first + i - 1]
      if v then
        S[k], T[k] = v, 'string'
      else
        -- MGET tells of no wrong type: what it has not found is looked at alone.
        found[i] = str(k)
      end
      holds = holds and v == (kind == 'V+' and A[p + i])
    end
    p = kind == 'V+' and p + n or p
    return holds, found
  end
  local k = key()
  T[k] = 'hash'
  found = call('HMGET', k, unpack(A, p + 1, p + n))
  p = p + n
  for i = 1, n do
    holds = holds and found[i] == (kind == 'F+' and A[p + i])
  end
  p = kind == 'F+' and p + n or p
  return holds, found
end

local found, conflict, left = {}, false, num()
while left > 0 do
  local kind = nxt()
  if #kind == 2 then
    local holds, values = guards(kind)
    for i = 1, #values do
      found[#found + 1] = values[i]
    end
    conflict = conflict or not holds
    left = left - #values
  else
    local holds, value = guard(kind)
    found[#found + 1] = value
    conflict = conflict or not holds
    left = left - 1
  end
end
if conflict then
  return {0, found}
end

local todo, count = {}, num()

-- Checks many writes of one kind, of fields to one hash; answers how many.
local function writes(kind)
  local n = num()
  if kind == 'del+' or kind == 'set+' then
    local first = num()
    local command = {'MSET'}
    for i = 1, n do
      local k = K[first + i - 1]
      local v = kind == 'set+' and A[p + i]
      S[k], T[k] = v, v and 'string' or 'none'
      command[2 * i], command[2 * i + 1] = k, v
    end
    if kind == 'del+' then
      command = {'DEL', K, first, first + n - 1}
    else
      p = p + n
    end
    todo[#todo + 1] = command
    return n
  elseif kind == 'rpu+' then
    local first = num()
    local fresh = call('EXISTS', unpack(K, first, first + n - 1)) == 0
    for i = first, first + n - 1 do
      if fresh then
        T[K[i]] = 'list'
      else
        typed(K[i], 'list')
      end
      local to = p + 1 + tonumber(A[p + 1])
      todo[#todo + 1] = {'RPUSH', A, p + 2, to, K[i]}
      p = to
    end
    return n
  end
  local k = key()
  if kind == 'hin+' then
    local fields, sums, seen, exact = {}, {}, {}, T[k] == nil and not changed[k]
    for i = 1, n do
      fields[i] = A[p + 2 * i - 1]
    end
    local values = try('HMGET', k, unpack(fields))
    for i = 1, n do
      local v, delta = values[i], A[p + 2 * i]
      if values.err or not addable(v, delta) then
        bad = bad or ('no counter, or one at its limit: ' .. k)
        break
      end
      local from, by = tonumber(v or '0'), tonumber(delta)
      exact = exact and not seen[fields[i]] and math.max(math.abs(from), math.abs(by), math.abs(from + by)) < 9007199254740992
      seen[fields[i]] = true
      sums[2 * i - 1], sums[2 * i] = fields[i], exact and string.format('%.0f', from + by)
    end
    if exact then
      todo[#todo + 1] = {'=', k, sums}
    else
      for i = 1, n do
        todo[#todo + 1] = {'HINCRBY', k, fields[i], A[p + 2 * i]}
      end
    end
    T[k], p = 'hash', p + 2 * n
    return n
  end
  typed(k, kind == 'zad+' and 'zset' or 'hash')
  local to = p + n * (kind == 'hde+' and 1 or 2)
  todo[#todo + 1] = {kind == 'hde+' and 'HDEL' or kind == 'hse+' and 'HSET' or 'ZADD', A, p + 1, to, k}
  p = to
  return n
end

left = count
while left > 0 do
  local kind = nxt()
  if #kind == 4 then
    left = left - writes(kind)
  else
    todo[#todo + 1] = write(kind)
    left = left - 1
  end
end
local wanted = num()
if count > 0 then
  local from = p
  for _ = 1, wanted do
    local kind, more = read_of(nxt())
    typed(key(), kind)
    p = p + more
  end
  p = from
  if bad then
    return {3, bad}
  end
end

-- A server that is out of memory refuses what may need more until a script has written something: the first write must be allowed to fail, or
-- part of a commit would happen. Later ones are not refused any more.
local wrote = false
local replies = {}
for _, w in ipairs(todo) do
  local name = w[1]
  if type(w[2]) == 'table' then
    -- A run: its arguments stand in a row.
    local n
    if w[5] then
      n = call(name, w[5], unpack(w[2], w[3], w[4]))
    else
      call(name, unpack(w[2], w[3], w[4]))
    end
    if name == 'RPUSH' then
      replies[#replies + 1] = string.format('%.0f', n)
    end
  elseif name == '=' then
    -- What is counted in many fields, computed above.
    call('HSET', w[2], unpack(w[3]))
    for i = 2, #w[3], 2 do
      replies[#replies + 1] = w[3][i]
    end
  elseif name == '?' then
    local v = try('HGET', w[2], w[3])
    if type(v) == 'string' and addable(v, w[4]) then
      try('HINCRBY', w[2], w[3], w[4])
    end
  elseif is_told(name) then
    -- Checked above; should a counter fail all the same, the rest of the commit stands and the caller is told.
    local n
    if name == '+' then
      n = put_frame(unpack(w, 2))
    elseif name == '-' then
      n = del_frame(unpack(w, 2))
    elseif wrote and (name == 'INCRBY' or name == 'HINCRBY') then
      n = try(unpack(w))
    else
      n = call(unpack(w))
    end
    if type(n) ~= 'number' then
      n = '?'
    elseif math.abs(n) >= 9007199254740992 then
      -- More than a double holds: the text is exact.
      n = name == 'INCRBY' and call('GET', w[2]) or call('HGET', w[2], w[3])
    else
      n = string.format('%.0f', n)
    end
    replies[#replies + 1] = n
  else
    call(unpack(w))
  end
  wrote = wrote or name ~= '?'
end
replies = table.concat(replies, ',')
if fence then
  call('HSET', fence, slot, record .. replies)
end

S = {}
local values = {}
for i = 1, wanted do
  values[i] = query(nxt())
end
return {1, replies, values}
