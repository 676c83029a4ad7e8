'use strict';

const { native } = require('./native.cjs');

// One class for each status of the library, so that `instanceof` and `error.code` both tell them apart.

/** A failure that the library reports. A call that fails gives nothing else: no score, no verdict. */
class SirenError extends Error {
  /**
   * @param {string} code the status by name, such as 'busy'
   * @param {number} status the status by number, as in siren.h
   */
  constructor(message, code, status, options) {
    super(message, options);
    this.code = code;
    this.status = status;
  }
}
SirenError.prototype.name = 'SirenError';

class InvalidArgumentError extends SirenError {}
class InvalidHandleError extends SirenError {}
class InvalidUtf8Error extends SirenError {}
class NotFoundError extends SirenError {}
class IoError extends SirenError {}
class InvalidModelError extends SirenError {}
class UnsupportedError extends SirenError {}
class NetworkError extends SirenError {}
class UnauthorizedError extends SirenError {}
class OfflineError extends SirenError {}
class LimitExceededError extends SirenError {}
class OutOfMemoryError extends SirenError {}
class BusyError extends SirenError {}
class CancelledError extends SirenError {}
class DeadlineExceededError extends SirenError {}
class PoisonedError extends SirenError {}
class ForkedError extends SirenError {}
class NonFiniteError extends SirenError {}
class InternalError extends SirenError {}
class InUseError extends SirenError {}

/** By the status's number; 0 is success. */
const statuses = [
  ['ok', null],
  ['invalid_argument', InvalidArgumentError],
  ['invalid_handle', InvalidHandleError],
  ['invalid_utf8', InvalidUtf8Error],
  ['not_found', NotFoundError],
  ['io', IoError],
  ['invalid_model', InvalidModelError],
  ['unsupported', UnsupportedError],
  ['network', NetworkError],
  ['unauthorized', UnauthorizedError],
  ['offline', OfflineError],
  ['limit_exceeded', LimitExceededError],
  ['out_of_memory', OutOfMemoryError],
  ['busy', BusyError],
  ['cancelled', CancelledError],
  ['deadline_exceeded', DeadlineExceededError],
  ['poisoned', PoisonedError],
  ['forked', ForkedError],
  ['non_finite', NonFiniteError],
  ['internal', InternalError],
  ['in_use', InUseError],
];

for (const [, type] of statuses.slice(1)) {
  Object.defineProperty(type.prototype, 'name', { value: type.name, writable: true, configurable: true });
}
// What the web's and Node's own functions call it when their signal aborts.
CancelledError.prototype.name = 'AbortError';

/** The error of a status, also of one that only a newer library knows; never of success. */
function errorOf(status, message, options) {
  const [code, Type] = statuses[status] ?? [native().siren_status_name(status), SirenError];
  if (!Type) throw new RangeError(`status ${status} is no failure`);
  return new Type(message, code, status, options);
}

const numberOf = (name) => statuses.findIndex(([code]) => code === name);

module.exports = {
  statuses,
  errorOf,
  failure: (name, message, options) => errorOf(numberOf(name), message, options),
  classes: Object.fromEntries(
    [SirenError, ...statuses.slice(1).map(([, type]) => type)].map((type) => [type.name, type]),
  ),
};
