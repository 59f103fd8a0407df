-- One commit: all guards, then all checks, then all writes, then the reads. Nothing can fail after the first write.
-- KEYS: all keys the program names. ARGV: the prefix of all keys, then the program as `script.rs` lays it out.
-- Values are opaque bytes. Numbers in Lua are doubles: the only ones computed here are u32, and estimates that decide whether an addition
-- stays far from the limits of an i64.
local K, A, p = KEYS, ARGV, 1
local call, try = redis.call, redis.pcall
local S, T = {}, {} -- strings as they will be once the writes before are done (false: absent); types likewise
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
    local v, want = call('LRANGE', k, 0, -1), list()
    T[k] = 'list'
    local holds = kind == 'p' and #v >= #want or #v == #want
    for i = 1, #want do
      holds = holds and v[i] == want[i]
    end
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
  return name == 'HINCRBY' or name == 'INCRBY' or name == 'RPUSH' or name == 'RPUSHX' or name == 'HDEL' or name == '+' or name == '-' or name == 'LPUSH'
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

-- How many words a guard or a write has from `at` on, of those that may stand in one command with others of their kind.
local function size(kind, at)
  if kind == 'V' then
    return A[at + 1] == '0' and 2 or 3
  elseif kind == 'F' then
    return A[at + 2] == '0' and 3 or 4
  elseif kind == 'hse' or kind == 'zad' then
    return 3
  elseif kind == 'set' or kind == 'hde' then
    return 2
  end
  return kind == 'del' and 1
end

-- Commands about many names cost a fraction of as many commands: neighbours of one kind, of fields those of one hash, are carried out together.
-- How many stand here, the first one included, whose kind was read just before.
local function run(kind, left)
  local at, n, first = p + 1, 1, A[p + 1]
  local words = size(kind, at)
  if not words then
    return 1
  end
  local one_key = kind ~= 'V' and kind ~= 'set' and kind ~= 'del'
  while n < left and n < 1000 do
    at = at + words
    if A[at] ~= kind or (one_key and A[at + 1] ~= first) then
      return n
    end
    n, at = n + 1, at + 1
    words = size(kind, at)
  end
  return n
end

-- A value, or false for none.
local function wanted_value()
  return nxt() ~= '0' and nxt()
end

-- Many guards at once: whether all hold, and what is there.
local function guards(kind, n)
  local wants, holds, found = {}, true, {}
  if kind == 'V' then
    local names, missing = {}, {}
    for i = 1, n do
      names[i], wants[i] = key(), wanted_value()
      p = i < n and p + 1 or p
      if S[names[i]] == nil then
        missing[#missing + 1] = names[i]
      end
    end
    local values = #missing > 0 and call('MGET', unpack(missing)) or {}
    for i, k in ipairs(missing) do
      if values[i] then
        S[k], T[k] = values[i], 'string'
      end
    end
    for i = 1, n do
      -- MGET tells of no wrong type: what it has not found is looked at alone.
      found[i] = str(names[i])
      holds = holds and found[i] == wants[i]
    end
    return holds, found
  end
  local k, fields = nil, {}
  for i = 1, n do
    k, fields[i], wants[i] = key(), nxt(), wanted_value()
    p = i < n and p + 1 or p
  end
  T[k] = 'hash'
  found = call('HMGET', k, unpack(fields))
  for i = 1, n do
    holds = holds and found[i] == wants[i]
  end
  return holds, found
end

local found, conflict, left = {}, false, num()
while left > 0 do
  local kind = nxt()
  local n = run(kind, left)
  local holds, value
  if n > 1 then
    holds, value = guards(kind, n)
    for i = 1, n do
      found[#found + 1] = value[i]
    end
  else
    holds, value = guard(kind)
    found[#found + 1] = value
  end
  conflict = conflict or not holds
  left = left - n
end
if conflict then
  return {0, found}
end

-- Appends the next write of the same kind to a command.
local function extend(command, kind)
  p = p + 1
  local more = write(kind)
  for i = (kind == 'set' or kind == 'del') and 2 or 3, #more do
    command[#command + 1] = more[i]
  end
end

local todo, count = {}, num()
left = count
while left > 0 do
  local kind = nxt()
  local n = run(kind, left)
  local command = write(kind)
  if n > 1 then
    for _ = 2, n do
      extend(command, kind)
    end
    command[1] = kind == 'set' and 'MSET' or command[1]
    command.n = n
  end
  todo[#todo + 1] = command
  left = left - n
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
  if name == 'HDEL' and w.n then
    -- Each is told of by itself.
    local there = call('HMGET', unpack(w, 2))
    call(unpack(w))
    for i = 1, w.n do
      replies[#replies + 1] = there[i] and '1' or '0'
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
