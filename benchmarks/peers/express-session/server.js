// A count of visits in the usual way with Express and express-session, with sessions in
// SQLite: every statement is prepared, and SQLite has a write-ahead log (for which
// better-sqlite3 sets synchronous=NORMAL).
//
//     node server.js FILE PORT
'use strict';

const express = require('express');
const session = require('express-session');
const Database = require('better-sqlite3');

const DAY = 24 * 60 * 60 * 1000;

class SQLiteStore extends session.Store {
  constructor(path) {
    super();
    const database = new Database(path);
    database.pragma('journal_mode = WAL');
    database.exec(
      'CREATE TABLE IF NOT EXISTS sessions (sid TEXT PRIMARY KEY, ' +
      'sess TEXT NOT NULL, expire INTEGER NOT NULL);' +
      'CREATE INDEX IF NOT EXISTS sessions_expire ON sessions (expire)');
    this.read = database.prepare(
      'SELECT sess FROM sessions WHERE sid = ? AND expire > ?');
    this.write = database.prepare(
      'INSERT OR REPLACE INTO sessions (sid, sess, expire) VALUES (?, ?, ?)');
    this.use = database.prepare('UPDATE sessions SET expire = ? WHERE sid = ?');
    this.remove = database.prepare('DELETE FROM sessions WHERE sid = ?');
  }

  expiry(sess) {
    return Date.now() + (sess.cookie.maxAge || DAY);
  }

  attempt(callback, work) {
    let result;
    try {
      result = work();
    } catch (error) {
      return callback && callback(error);
    }
    return callback && callback(null, result);
  }

  get(sid, callback) {
    this.attempt(callback, () => {
      const row = this.read.get(sid, Date.now());
      return row ? JSON.parse(row.sess) : null;
    });
  }

  set(sid, sess, callback) {
    this.attempt(callback, () => {
      this.write.run(sid, JSON.stringify(sess), this.expiry(sess));
    });
  }

  touch(sid, sess, callback) {
    this.attempt(callback, () => {
      this.use.run(this.expiry(sess), sid);
    });
  }

  destroy(sid, callback) {
    this.attempt(callback, () => {
      this.remove.run(sid);
    });
  }
}

const [path, port] = process.argv.slice(2);
const app = express();
app.use(session({
  store: new SQLiteStore(path),
  secret: 'of a benchmark',
  resave: false,
  saveUninitialized: false,
}));

app.get('/visits', (request, response) => {
  request.session.visits = (request.session.visits || 0) + 1;
  response.json({ visits: request.session.visits });
});

app.listen(Number(port), '127.0.0.1', () => console.log('Started'));
