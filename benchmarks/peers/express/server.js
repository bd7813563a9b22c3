// The users in the usual way with Express and better-sqlite3: every statement is
// prepared, and SQLite has a write-ahead log (for which better-sqlite3 sets
// synchronous=NORMAL).
//
//     node server.js FILE PORT
'use strict';

const express = require('express');
const Database = require('better-sqlite3');

const [path, port] = process.argv.slice(2);
const database = new Database(path);
database.pragma('journal_mode = WAL');
database.exec(
  'CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY AUTOINCREMENT, ' +
  'name TEXT NOT NULL, email TEXT NOT NULL UNIQUE)');
const get = database.prepare('SELECT id, name, email FROM users WHERE id = ?');
const create = database.prepare('INSERT INTO users (name, email) VALUES (?, ?)');

const app = express();
app.use(express.json());

app.get('/users/:id', (request, response) => {
  const user = get.get(request.params.id);
  if (user) {
    response.json(user);
  } else {
    response.status(404).json({ error: 'User not found' });
  }
});

app.post('/users', (request, response) => {
  const { name, email } = request.body;
  const id = create.run(name, email).lastInsertRowid;
  response.status(201).location(`/users/${id}`).json({ id, name, email });
});

app.listen(Number(port), '127.0.0.1', () => console.log('Started'));
