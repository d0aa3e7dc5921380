-- One step of the generic cell rate algorithm, as rollcall_core::limit::Usage::count does it, by this server's clock.
-- The key holds the moment at which nothing is used any more, in microseconds since 1970, and is gone by then.
-- Answers how many microseconds to wait; 0 is done.
local step, burst, interval = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local used = tonumber(redis.call('GET', KEYS[1])) or 0
local free_at = math.max(used, now) + interval

if step == 'take' or step == 'check' then
  local wait = free_at - (now + burst * interval)
  if wait > 0 then
    return wait
  end
  if step == 'check' then
    return 0
  end
elseif step == 'give-back' then
  free_at = used - interval
end

if free_at > now then
  -- Without the format Lua writes 15 digits at most.
  redis.call('SET', KEYS[1], string.format('%.0f', free_at), 'PX', math.ceil((free_at - now) / 1000))
else
  redis.call('DEL', KEYS[1])
end
return 0
