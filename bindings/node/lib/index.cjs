'use strict';

const { native } = require('./native.cjs');
const { classes } = require('./errors.cjs');
const { Guard, open } = require('./guard.cjs');
const { Stream } = require('./stream.cjs');
const { GuardTransformStream } = require('./transform.cjs');

/** The library's version, such as '0.1.0'. */
const version = () => native().siren_version();

module.exports = { open, version, Guard, Stream, GuardTransformStream, ...classes };
