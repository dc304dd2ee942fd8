//! Instructions of the kernel's virtual machine, and the jumps among them: what our programs (`program`, `burst`, `redirect`, `siblings`) are put together from.
//!
//! Used where a program is made, never while frames pass. Whether it may run is for the kernel's verifier to say.

use std::os::fd::{AsRawFd, BorrowedFd};

/// One instruction: opcode, destination and source register, offset, immediate.
pub(super) fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let registers = destination | source << 4;
    u64::from(code)
        | u64::from(registers) << 8
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}

/// `BPF_PSEUDO_MAP_FD` and `BPF_PSEUDO_MAP_VALUE`.
const MAP: u8 = 1;
const MAP_VALUE: u8 = 2;

/// A map into a register, as helper functions want it.
pub(super) fn load_map(register: u8, map: BorrowedFd<'_>) -> [u64; 2] {
    [op(LOAD_WIDE, register, MAP, 0, map.as_raw_fd()), 0]
}

/// The address of an array map's only element into a register.
pub(super) fn load_map_value(register: u8, map: BorrowedFd<'_>) -> [u64; 2] {
    [op(LOAD_WIDE, register, MAP_VALUE, 0, map.as_raw_fd()), 0]
}

// Opcodes (Documentation/bpf/standardization/instruction-set.rst).
pub(super) const LOAD_8: u8 = 0x71;
pub(super) const LOAD_16: u8 = 0x69;
pub(super) const LOAD_32: u8 = 0x61;
pub(super) const LOAD_64: u8 = 0x79;
pub(super) const STORE_16: u8 = 0x6b;
pub(super) const STORE_32: u8 = 0x63;
pub(super) const STORE_64: u8 = 0x7b;
pub(super) const STORE_CONSTANT_32: u8 = 0x62;
const LOAD_WIDE: u8 = 0x18;
pub(super) const MOVE: u8 = 0xbf;
pub(super) const MOVE_CONSTANT: u8 = 0xb7;
pub(super) const ADD: u8 = 0x0f;
pub(super) const ADD_CONSTANT: u8 = 0x07;
pub(super) const SUBTRACT: u8 = 0x1f;
pub(super) const OR: u8 = 0x4f;
pub(super) const AND_CONSTANT: u8 = 0x57;
pub(super) const SHIFT_LEFT: u8 = 0x67;
pub(super) const TO_BIG_ENDIAN: u8 = 0xdc;
pub(super) const JUMP: u8 = 0x05;
pub(super) const JUMP_EQUAL: u8 = 0x1d;
pub(super) const JUMP_EQUAL_CONSTANT: u8 = 0x15;
pub(super) const JUMP_GREATER: u8 = 0x2d;
pub(super) const JUMP_GREATER_CONSTANT: u8 = 0x25;
pub(super) const JUMP_LESS_CONSTANT: u8 = 0xa5;
pub(super) const JUMP_NOT_CONSTANT: u8 = 0x55;
pub(super) const JUMP_NOT_CONSTANT_32: u8 = 0x56;
pub(super) const JUMP_NOT_EQUAL: u8 = 0x5d;
pub(super) const JUMP_NOT_LESS: u8 = 0x3d;
pub(super) const CALL: u8 = 0x85;
pub(super) const EXIT: u8 = 0x95;

// Helper functions, by number (`___BPF_FUNC_MAPPER` of include/uapi/linux/bpf.h).
pub(super) const MAP_LOOKUP: i32 = 1;
pub(super) const PROCESSOR: i32 = 8;
pub(super) const STORE_BYTES: i32 = 9;
pub(super) const CLONE_REDIRECT: i32 = 13;
pub(super) const REDIRECT: i32 = 23;
pub(super) const LOAD_BYTES: i32 = 26;
pub(super) const CHANGE_TAIL: i32 = 38;
pub(super) const CHANGE_HEAD: i32 = 43;
pub(super) const ADJUST_HEAD: i32 = 44;
pub(super) const SET_HASH: i32 = 48;
pub(super) const REDIRECT_MAP: i32 = 51;
pub(super) const ADJUST_TAIL: i32 = 65;
pub(super) const LOAD_BYTES_RELATIVE: i32 = 68;
pub(super) const XDP_STORE_BYTES: i32 = 190;

/// Where a jump goes; its offset is filled in when all instructions are there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    Again,
    Next,
    Pass,
    Redirect,
    End,
}

/// Instructions with the jumps among them.
#[derive(Default)]
pub(super) struct Assembly {
    code: Vec<u64>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Assembly {
    pub(super) fn put(&mut self, instructions: &[u64]) {
        self.code.extend(instructions);
    }

    /// A jump (its offset 0) to `label`.
    pub(super) fn jump(&mut self, instruction: u64, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.code.push(instruction);
    }

    /// `label` is here.
    pub(super) fn label(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    /// The program: offsets count instructions behind the jump, and back if they are negative.
    pub(super) fn finish(mut self) -> Vec<u64> {
        for (at, label) in self.jumps {
            let to = self.labels.iter().find(|(known, _)| *known == label).map_or(at + 1, |(_, to)| *to);
            let offset = (to as isize - at as isize - 1) as i16;
            self.code[at] |= u64::from(offset as u16) << 16;
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_go_to_their_labels() {
        let mut program = Assembly::default();
        program.label(Label::Again);
        program.jump(op(JUMP, 0, 0, 0, 0), Label::End);
        program.put(&[1, 2]);
        program.jump(op(JUMP, 0, 0, 0, 0), Label::Again);
        program.label(Label::End);
        program.put(&[3]);
        assert_eq!(program.finish(), [op(JUMP, 0, 0, 3, 0), 1, 2, op(JUMP, 0, 0, -4, 0), 3]);
    }
}
